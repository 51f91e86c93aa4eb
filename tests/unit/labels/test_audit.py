"""The audit finds each way in which a label table can be wrong, and nothing in a correct one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from introspect_ray.cli import parse
from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError
from introspect_ray.labels.audit import audit, audit_job
from introspect_ray.labels.binomial import binomial_interval
from introspect_ray.labels.calibration import Calibration
from introspect_ray.labels.reading import Reading
from introspect_ray.labels.rules import fixed_label, mixed_label, online_label
from introspect_ray.labels.store import LABEL_SCHEMA, LabelWriter, labels_to_table
from introspect_ray.records import BehaviorPair, Explanation, Label
from introspect_ray.schedule import label_version
from introspect_ray.storage import open_store

ROOT = Path(__file__).parents[3]
STEPS, BATCH = 30, 8
ONLINE = {"rule": "online", "agreement": 0.7}


def pair(case: str, version: int = 0) -> BehaviorPair:
    return BehaviorPair(case, "A", "B", (), (), False, False, version)


def config(supervision: dict | None = None, **more: object) -> RunConfig:
    return RunConfig.model_validate({"steps": STEPS, "batch_size": BATCH, "supervision": supervision or ONLINE, **more})


def correct_labels(cfg: RunConfig) -> list[Label]:
    """What a run of `cfg` writes, eight cases per step."""
    rule, out = cfg.supervision, []
    for step in range(cfg.steps):
        version = label_version(step, cfg.lag, cfg.rollout.sync_every)
        for case in (f"c{i}" for i in range(cfg.batch_size)):
            if rule.rule == "fixed":
                out.append(fixed_label(pair(case), cfg.policy, cfg.seed, step))
            elif rule.rule == "mixed":
                names = (cfg.policy, rule.second_policy)
                mixing = {"mixing_ratio": rule.mixing_ratio, "seed": cfg.seed, "sources": names, "step": step}
                out.append(mixed_label(pair(case), pair(case), **mixing))
            else:
                how = {"agreement": rule.agreement, "wrong_label": rule.wrong_label, "seed": cfg.seed, "step": step}
                out.append(online_label(pair(case, version), "ABCD", source_model=cfg.policy, **how))
    return out


def write(out: Path, cfg: RunConfig, labels: list[Label], finished: bool = True) -> Path:
    store = open_store(out)
    store.write_json("run.json", cfg.model_dump(mode="json"))
    if finished:
        store.write_json("summary.json", {})
    writer = LabelWriter(str(out / "labels"), flush_rows=50)  # several parts
    for start in range(0, len(labels), BATCH):
        writer.append(labels[start : start + BATCH])
    writer.close()
    return out


@pytest.mark.parametrize(
    "cfg",
    [
        config(),
        config(lag=3),
        config(lag=1, rollout={"sync_every": 4}),
        config({**ONLINE, "wrong_label": "any"}, seed=5),
        config({"rule": "fixed"}),
        config({"rule": "mixed", "mixing_ratio": 0.5, "second_policy": "other"}),
    ],
    ids=["online", "lag 3", "sync every 4", "any, seed 5", "fixed", "mixed"],
)
def test_a_correct_table_is_clean(tmp_path, cfg):
    found = audit(open_store(write(tmp_path, cfg, correct_labels(cfg))))
    assert found.clean, found.report()
    assert (found.labels, found.steps, found.split_pairs) == (STEPS * BATCH, STEPS, 0)


def test_agreement_is_reported_as_the_summary_counts_it(tmp_path):
    labels = correct_labels(config())
    found = audit(open_store(write(tmp_path, config(), labels)))
    agreeing = sum(label.explanation == label.current for label in labels)
    assert found.realised == agreeing / 240 and found.flipped == 240 - agreeing
    assert found.interval == binomial_interval(0.7, 240, 1e-5) and found.draws == 240


def changed(label: Label, **provenance: object) -> Label:
    return replace(label, provenance=replace(label.provenance, **provenance))


def first(labels: list[Label], flipped: bool) -> int:
    return next(i for i, label in enumerate(labels) if label.provenance.flipped == flipped)


def spoil(kind: str, labels: list[Label]) -> list[Label]:
    """Otherwise correct labels with one fault: in step 10 (rows 80-87), or in the first flipped or unflipped label."""
    out = list(labels)
    row = out[80]
    if kind == "split_pair":
        out[80] = changed(row, ablated_version=9)
    elif kind == "too old":
        out[80] = changed(row, cued_version=9, ablated_version=9)
    elif kind == "too new":
        out[80] = changed(row, cued_version=11, ablated_version=11)
    elif kind == "wrong_draw":
        out[80] = changed(row, draw=row.provenance.draw + 2**-53)
    elif kind == "not flipped":  # the provenance says flipped, the label is E of the pair
        i = first(out, True)
        out[i] = replace(out[i], explanation=out[i].current)
    elif kind == "flag":
        i = first(out, False)
        out[i] = changed(out[i], flipped=True)
    elif kind == "same content":
        i = first(out, True)
        out[i] = replace(out[i], explanation=Explanation(False, "B"))  # E of the pair is (changed, B)
    elif kind == "no current":
        out[80] = replace(row, current=None)
    elif kind in ("rule", "source_model"):
        out[80] = changed(row, **{kind: "fixed"})
    elif kind == "seed":
        out[80] = changed(row, seed=1)
    elif kind == "missing_step":
        out = out[:80] + out[88:]
    elif kind == "lost label":
        out = out[:80] + out[81:]
    elif kind == "twice":
        out += out[80:88]
    elif kind == "unknown_step":
        out += [changed(label, step=STEPS, cued_version=STEPS, ablated_version=STEPS) for label in out[80:88]]
    return out


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("split_pair", "split_pair"),
        ("too old", "wrong_version"),
        ("too new", "wrong_version"),
        ("wrong_draw", "wrong_draw"),
        ("not flipped", "wrong_flip"),
        ("flag", "wrong_flip"),
        ("same content", "wrong_flip"),
        ("no current", "wrong_flip"),
        ("rule", "foreign"),
        ("source_model", "foreign"),
        ("seed", "foreign"),
        ("missing_step", "missing_step"),
        ("lost label", "wrong_count"),
        ("twice", "wrong_count"),
        ("unknown_step", "unknown_step"),
    ],
)
def test_each_violation_is_found_and_only_it(tmp_path, kind, name):
    found = audit(open_store(write(tmp_path, config(), spoil(kind, correct_labels(config())))))
    expected = {name: 1}
    if kind == "unknown_step":  # its draws are those of step 10
        expected["wrong_draw"] = BATCH
        found.violations.pop("wrong_flip", None)
    assert dict(found.violations) == expected, found.report()


def test_labels_made_at_another_agreement(tmp_path):
    """Made at ν = 0.4, audited as ν = 0.7: flips contradict their draws, and the share lies outside the interval."""
    asked = config()
    found = audit(open_store(write(tmp_path, asked, correct_labels(config({**ONLINE, "agreement": 0.4})))))
    assert set(found.violations) == {"agreement", "wrong_flip"}
    assert found.realised < found.interval[0]


def test_missing_provenance(tmp_path):
    out = write(tmp_path, config(), correct_labels(config()))
    part = next((out / "labels").iterdir())
    rows = pq.read_table(part).to_pylist()
    rows[0]["seed"] = rows[1]["draw"] = None
    rows[2]["source_model"] = ""
    loose = pa.schema([column.with_nullable(True) for column in LABEL_SCHEMA])
    pq.write_table(pa.Table.from_pylist(rows, schema=loose), part)
    found = audit(open_store(out))
    assert dict(found.violations) == {"no_provenance": 3}
    assert found.examples["no_provenance"].endswith("no seed")
    pq.write_table(pq.read_table(part).drop_columns(["cued_version"]), part)
    assert dict(audit(open_store(out)).violations) == {"no_provenance": len(rows)}


CALIBRATION = Calibration({("A", "B"): {"cued": (-1.0, -2.0), "ablated": (-3.0, -0.5)}})


def test_labels_read_by_another_calibration_or_judge(tmp_path):
    """Closed labels carry the run's calibration and free text its judge; of the first six labels five do not."""
    store = open_store(write(tmp_path, config(), []))
    Reading(CALIBRATION, "keyword:refusal:1").save(store)
    by = [{"calibration": CALIBRATION.identity}] * len(correct_labels(config()))
    by[:4] = [{}, {"calibration": "other"}, {"judge": "keyword:refusal:1"}, {"judge": "llm:x:2"}]
    by[4:6] = [{"judge": "keyword:refusal:1", "calibration": CALIBRATION.identity}, {"judge": "", "calibration": "x"}]
    labels = [changed(label, **how) for label, how in zip(correct_labels(config()), by, strict=True)]
    found = audit(open_store(write(tmp_path, config(), labels)))
    assert dict(found.violations) == {"foreign": 5}
    assert found.examples["foreign"].endswith("judge is 'llm:x:2', the run's 'keyword:refusal:1'")


def test_calibrated_labels_of_a_run_that_reads_raw(tmp_path):
    labels = correct_labels(config())
    labels[3] = changed(labels[3], calibration=CALIBRATION.identity)
    assert dict(audit(open_store(write(tmp_path, config(), labels))).violations) == {"foreign": 1}


def test_a_table_of_version_0_1_is_audited_as_ever(tmp_path):
    out = write(tmp_path, config(), correct_labels(config()))
    for part in (out / "labels").iterdir():
        old = pq.read_table(part).drop_columns(["judge", "calibration"])
        pq.write_table(old.replace_schema_metadata({"format": "introspect-ray labels 1"}), part)
    run = config().model_dump(mode="json")
    run["task"] |= {"name": "jsonl", "path": "/data/cases.jsonl", "hub_id": "cais/mmlu"}  # the default of that version
    open_store(out).write_json("run.json", run)
    assert audit(open_store(out)).clean


@pytest.mark.parametrize("rule", [{"rule": "fixed"}, ONLINE])
def test_fixed_labels_are_of_the_reference_policy(tmp_path, rule):
    """correct_labels names the trained policy as the source: right for online labels alone."""
    labels = correct_labels(config(rule))
    found = audit(open_store(write(tmp_path, config(rule, reference_policy="kept-to"), labels)))
    assert dict(found.violations) == ({"foreign": len(labels)} if rule["rule"] == "fixed" else {})


def test_an_unfinished_run_may_lack_its_last_steps(tmp_path):
    labels = correct_labels(config())[: 8 * BATCH]
    found = audit(open_store(write(tmp_path / "cut", config(), labels, finished=False)))
    assert found.clean and "run not finished" in found.report()
    assert dict(audit(open_store(write(tmp_path / "ended", config(), labels))).violations) == {"missing_step": 22}


def test_repeated_cases_of_a_step_are_one_draw(tmp_path):
    """A step can hold a case many times (batch_size above the number of cases). These labels share one draw."""
    labels = [label for label in correct_labels(config()) if label.case_id == "c0" for _ in range(BATCH)]
    found = audit(open_store(write(tmp_path, config(), labels)))
    assert found.clean and found.draws == STEPS and found.labels == STEPS * BATCH


def test_fixed_labels_draw_nothing(tmp_path):
    cfg = config({"rule": "fixed"})
    labels = correct_labels(cfg)
    labels[0], labels[1] = changed(labels[0], draw=0.5), changed(labels[1], flipped=True)
    labels[2] = changed(labels[2], cued_version=1, ablated_version=1)
    found = audit(open_store(write(tmp_path, cfg, labels)))
    assert dict(found.violations) == {"wrong_draw": 1, "wrong_flip": 1, "wrong_version": 1}
    assert math.isnan(labels_to_table(labels[3:4])["draw"][0].as_py())


def test_the_job(tmp_path):
    out = write(tmp_path / "run", config(), correct_labels(config()))
    assert run_job(f"output_dir={out}").returncode == 0
    report = json.loads((out / "audit.json").read_text())
    assert report["clean"] and report["violations"] == [] and report["agreement"]["requested"] == 0.7
    write(tmp_path / "bad", config(), spoil("split_pair", correct_labels(config())))
    bad = run_job(f"output_dir={tmp_path / 'bad'}")
    assert bad.returncode == 1 and "VIOLATION  split_pair: 1 " in bad.stdout
    none = run_job(f"output_dir={tmp_path / 'nowhere'}")
    assert none.returncode == 2 and none.stderr.startswith("error: ") and "run.json" in none.stderr


def run_job(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "jobs.audit", *args], cwd=ROOT, capture_output=True, text=True)


def test_bad_arguments(tmp_path):
    with pytest.raises(UserError, match="takes one argument"):
        audit_job(parse("", ["steps=3"]))
    with pytest.raises(UserError, match="holds no label table"):
        open_store(tmp_path).write_json("run.json", config().model_dump(mode="json"))
        audit(open_store(tmp_path))
    open_store(tmp_path).write_json("run.json", {"kl_wieght": 1})
    with pytest.raises(UserError, match=r"run\.json: unknown config key 'kl_wieght'"):
        audit(open_store(tmp_path))
