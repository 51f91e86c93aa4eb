"""`introspect-ray label`, killed and resumed: the pairs of the ordinary path, which then labels nothing itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from head import kill_family
from test_behaviours import WORDS, write_cases

from introspect_ray.labels.pair_table import PAIR_SCHEMA
from introspect_ray.runs.bulk_label import read_set
from introspect_ray.storage import open_store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
REPO = Path(__file__).parents[2]
SET = ["task.train_cases=1024", "task.test_cases=256", "rollout.engine=transformers", "rollout.group_size=4"]
PARTS = 40  # (1024 + 256) / (8 groups of 4 cases)
TRAIN = [*SET, "steps=2", "batch_size=16", "tracking.backend=jsonl"]


def job(name: str, *args: str) -> str:
    """Its output."""
    command = [sys.executable, f"jobs/{name}.py", *args]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_after_a_part(out: Path) -> int:
    """Start labelling into `out`, and end all its processes by SIGKILL when a part is there; the number of parts."""
    command = [sys.executable, "jobs/label.py", *SET, "--explain", f"output_dir={out}"]
    log = out.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=REPO, stdout=output, stderr=output)
    while process.poll() is None and not list(out.glob("pairs/*.parquet")):
        time.sleep(0.02)
    assert process.poll() is None, log.read_text()
    kill_family(process)
    return len(list(out.glob("pairs/*.parquet")))


@pytest.mark.slow
def test_a_killed_label_job_ends_with_the_pairs_that_training_would_make(tmp_path):
    """Held-out cases value by value, logprobs included; training cases, which a run reads off the pass that makes its
    reference, with the same answers. Training on the set gives the bits of training without it."""
    out, plain, used = tmp_path / "set", tmp_path / "plain", tmp_path / "used"
    kept = kill_after_a_part(out)
    assert 0 < kept < PARTS and not (out / "labels.json").exists()
    parts = {path: path.stat().st_mtime_ns for path in out.glob("pairs/*.parquet")}
    said = job("label", *SET, "--explain", f"output_dir={out}", "--resume")
    assert f"resume   {PARTS - kept} of {PARTS} parts are missing" in said
    assert all(path.stat().st_mtime_ns == made for path, made in parts.items())
    assert "already finished" in job("label", *SET, "--explain", f"output_dir={out}", "--resume")

    job("train", *TRAIN, f"output_dir={plain}")
    (ordinary,), (cached,) = (list(folder.glob("cache/pairs/*.parquet")) for folder in (plain, out))
    assert cached.name != ordinary.name and not list(plain.glob("cache/passes/**/*.part"))
    table, theirs = pq.read_table(out / "pairs"), pq.read_table(ordinary)
    assert table.select(PAIR_SCHEMA.names).equals(pq.read_table(cached))
    assert theirs.slice(1024).equals(pq.read_table(cached).slice(1024))
    names = ["case_id", "cued", "ablated", "cued_off_format", "ablated_off_format", "weight_version"]
    assert theirs.select(names).equals(table.select(names))
    for name in ("cued_logprobs", "ablated_logprobs"):
        ours, engines = (one[name].combine_chunks().flatten().to_pylist() for one in (theirs, table))
        assert ours == pytest.approx(engines, abs=1e-4)
    assert table["side"].to_pylist() == ["train"] * 1024 + ["test"] * 256
    done = json.loads((out / "labels.json").read_text())
    assert done["parts"] == PARTS and done["this_call"]["cases_labelled"] == 1280 - 32 * kept
    assert set(table["policy_digest"].to_pylist()) == {done["provenance"]["policy_digest"]}

    written = cached.stat().st_mtime_ns
    job("train", *TRAIN, f"output_dir={used}", f"cache_dir={out / 'cache'}")
    assert cached.stat().st_mtime_ns == written and not (used / "cache").exists()  # nothing was labelled again
    one, other = (run / "policy" / "model.safetensors" for run in (plain, used))
    assert one.read_bytes() == other.read_bytes()
    evaluated = pq.read_table(plain / "evaluation" / "untrained.parquet").to_pylist()
    assert [row["said"] for row in evaluated] == table["said"].to_pylist()[1024:]


def test_judged_text_and_labels_of_two_tokens_on_s3_and_an_evaluation_that_uses_them(tmp_path, s3_env, monkeypatch):
    """Every other case has labels of two tokens, the others free text: 48 + 16 cases, 32 of them with two replies."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_cases(tmp_path / "train.jsonl", "train.jsonl", 48)
    write_cases(tmp_path / "test.jsonl", "test.jsonl", 16)
    (tmp_path / "words.yaml").write_text(WORDS)
    keys = [
        "task.name=jsonl", f"task.path={tmp_path / 'train.jsonl'}", f"task.test_path={tmp_path / 'test.jsonl'}",
        "policy=organism", f"judge.words={tmp_path / 'words.yaml'}", "rollout.engine=transformers",
        "rollout.group_size=4", "task.calibration=contextual", f"cache_dir={s3_env}/cache",
    ]  # fmt: skip
    job("label", *keys, f"output_dir={s3_env}/set")
    store = open_store(f"{s3_env}/set")
    assert store.list("pairs") == ["pairs/rows-00000000-00000031.parquet", "pairs/rows-00000032-00000063.parquet"]
    pairs, judged = read_set(store)
    assert (len(pairs), judged and judged.replies) == (64, 64)
    low = {"A": "low", "B": "low", "C": "high", "D": "high"}
    table = pq.read_table(pa.BufferReader(store.read_bytes("pairs/rows-00000032-00000063.parquet"))).to_pylist()
    for row in table[1::2]:
        assert row["cued"] == low[row["cued_text"].split()[0]] and row["judge"].startswith("keyword:words:")
    done = store.read_json("labels.json")
    assert done["calibration"]["kind"] == "contextual" and done["judges"]["replies"] == 64

    said = job("evaluate", *keys, f"output_dir={s3_env}/eval", "eval.policy=organism:second")
    assert "cached   what organism answers: no engine is started for it" in said
    evaluation = open_store(f"{s3_env}/eval").read_json("evaluation.json")
    assert (evaluation["cases"], evaluation["dev"]["cases"]) == (13, 3)  # of 16 questions, round(0.2 x 16) are dev
    assert evaluation["calibration"]["identity"] == done["calibration"]["identity"]
