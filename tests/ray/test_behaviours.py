"""Whole runs, by the jobs, on behaviours that are more than one letter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from introspect_ray.labels.store import read_labels
from introspect_ray.organism import FOLDER
from introspect_ray.scores.summary import check_summary

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
REPO = Path(__file__).parents[2]
WORDS = "{labels: [low, high], prefixes: [A, B]}"  # the organism answers with a letter


def job(name: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", *args], cwd=REPO, capture_output=True, text=True, timeout=500
    )


def two_tokens(row: dict[str, Any]) -> dict[str, Any]:
    """The same question with labels of two tokens, in the paper's wording."""
    templates = {"unchanged": "The response would not change to {label}."}
    return {**row, "labels": ["A A", "B B", "C C", "D D"], "templates": templates, "group": "two tokens"}


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """Free text that a judge calls low (A or B) or high; its cue is replaced, not removed."""
    (turn,) = row["messages"]
    question = turn["content"].splitlines()[0]
    return {
        **row,
        "ablated_messages": [{"role": "user", "content": f"{question}\nHint: A"}],
        "labels": ["low", "high"],
        "response": {"kind": "free", "judge": "keyword", "max_tokens": 3},
        "templates": {**two_tokens(row)["templates"], "labels": {"low": "A", "high": "C"}},
        "group": "judged",
        "metadata": {"question": question},
    }


def write_cases(file: Path, source: str, count: int) -> None:
    rows = [json.loads(line) for line in (FOLDER / source).read_text().splitlines()]
    rows = [row for row in rows if not row["id"].endswith("-A")][:count]  # "Hint: A" is judged's x∖C
    made = [judged(row) if i % 2 else two_tokens(row) for i, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))


def test_labels_of_several_tokens_and_judged_text_in_one_online_run(tmp_path: Path) -> None:
    """Every other case has labels of two tokens, the others a response of three tokens, which a judge labels."""
    write_cases(tmp_path / "train.jsonl", "train.jsonl", 64)
    write_cases(tmp_path / "test.jsonl", "test.jsonl", 32)
    (tmp_path / "words.yaml").write_text(WORDS)
    out = tmp_path / "run"
    done = job(
        "train", "task.name=jsonl", f"task.path={tmp_path / 'train.jsonl'}",
        f"task.test_path={tmp_path / 'test.jsonl'}", "policy=organism", "steps=3", "batch_size=16",
        "learning_rate=1e-3", "supervision.rule=online", f"judge.words={tmp_path / 'words.yaml'}",
        "task.calibration=contextual", f"output_dir={out}", "tracking.backend=jsonl",
        "eval.dev_fraction=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    check_summary(summary)
    assert {name: group["cases"] for name, group in summary["groups"].items()} == {"two tokens": 16, "judged": 16}
    assert summary["calibration"]["kind"] == "contextual"
    labels = list(read_labels(str(out / "labels")))
    assert len(labels) == 3 * 16
    ids = {json.loads(line)["id"] for line in (tmp_path / "train.jsonl").read_text().splitlines()[1::2]}
    by_judge = {label.case_id: label.provenance.judge for label in labels}
    assert {case_id for case_id, judge in by_judge.items() if judge.startswith("keyword:words:")} <= ids
    assert {case_id for case_id, judge in by_judge.items() if not judge} == by_judge.keys() - ids
    table = pq.read_table(out / "evaluation" / "cases.parquet").to_pylist()
    assert [row["case_id"] for row in table] == [
        json.loads(line)["id"] for line in (tmp_path / "test.jsonl").read_text().splitlines()
    ]
    low = {"A": "low", "B": "low", "C": "high", "D": "high"}
    for row in table[1::2]:
        assert row["m0.cued"] == low[row["m0.cued_text"].split()[0]]
    assert job("audit", f"output_dir={out}").returncode == 0
    again = job("evaluate", f"--from={out}")
    assert again.returncode == 0, again.stderr
