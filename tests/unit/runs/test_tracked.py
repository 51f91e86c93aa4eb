"""What trackers are told: names that pages sort by, tags, descriptions, and a sweep's points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from introspect_ray import __version__
from introspect_ray.config import RunConfig, flatten, override
from introspect_ray.runs.results import open_tracker, track_aggregate, track_results
from introspect_ray.runs.tracked import HEADLINE, datasets, run_description, run_tags, tracked
from introspect_ray.scores.evaluation_table import TRAINED, UNTRAINED
from introspect_ray.storage import open_store
from introspect_ray.storage.tracking import JsonlTracker


def gaps(em: float) -> dict[str, Any]:
    """The gap in EM with an interval of ± 0.125, content 0.25 and *changed?* 0 above it."""
    values = {"em": em, "content": em + 0.25, "changed_accuracy": em}
    return {
        part: {"value": value, "ci": [value - 0.125, value + 0.125], "method": "bootstrap"}
        for part, value in values.items()
    }


SCORES = {
    "explanation": {"self": {"em": 0.75, "em_ci": [0.5, 0.875]}, "orig": {"em": 0.5}},
    "behavior": {"em": 0.875},
    "disagreement": {"self": None},
    "sources": None,
    "gap": gaps(0.25),
    "dev": {"cases": 2, "gap": {"em": {"value": -0.5, "ci": [-1.0, 0.0]}}},
}
SUMMARY = {**SCORES, "steps": 4, "cases": {"train": 6, "test": 8, "questions": 3}, "labels": {"split_pairs": 0}}
SUMMARY["timing_s"] = {"total": 2.0}


def test_the_gap_comes_first_and_no_other_score_is_taken_for_one_of_the_test_split():
    found = flatten(tracked(SCORES))
    assert {key: value for key, value in found.items() if value is not None} == {
        "gap.em": 0.25, "gap.content": 0.5, "gap.changed": 0.25,
        "gap_ci.em_low": 0.125, "gap_ci.em_high": 0.375, "gap_ci.content_low": 0.375, "gap_ci.content_high": 0.625,
        "gap_ci.changed_low": 0.125, "gap_ci.changed_high": 0.375,
        "objective.dev.gap.em": -0.5, "objective.dev.gap_ci.em_low": -1.0, "objective.dev.gap_ci.em_high": 0.0,
        "test.self.em": 0.75, "test.orig.em": 0.5, "test.behavior.em": 0.875,
    }  # fmt: skip
    names = [
        *found,
        "train_batch.loss",
        *(f"untrained.{name}" for name in found),
        "labels.split_pairs",
        "timing_s.total",
    ]
    assert sorted(names)[:3] == sorted(HEADLINE)
    assert not any(name.startswith("objective") for name in flatten(tracked({**SCORES, "dev": None})))


def test_tags_name_what_has_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = {"metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    cfg = override(RunConfig(), {"kl_weight": 0.1, "seed": 2, "output_dir": "/runs/a"})
    fixed = {
        "task": "organism", "policy": "organism", "method": "full", "rule": "fixed", "kl_weight": "0.1",
        "learning_rate": "1e-05", "seed": "2", "version": __version__, "output_dir": "/runs/a",
        "ray_job_id": "raysubmit_1",
    }  # fmt: skip
    assert run_tags(cfg) == fixed
    online = override(cfg, {"supervision.rule": "online", "method": "lora", "lora_rank": 8})
    assert run_tags(online).items() >= {"agreement": "1", "lora_rank": "8"}.items()
    swept = run_tags(online, ("kl_weight", "supervision.agreement", "seed"))  # a sweep has no single value of these
    assert not {"kl_weight", "agreement", "seed"} & swept.keys() and swept["lora_rank"] == "8"


def test_a_description_says_what_a_run_is_and_how_it_ended():
    cfg = override(RunConfig(), {"kl_weight": 0.1, "output_dir": "/runs/a"})
    before, after = run_description(cfg), run_description(cfg, SUMMARY)
    assert (
        before == "**organism** on task organism, fixed labels, method full: λ = 0.1, learning_rate = 1e-05, seed = 0"
    )
    assert after.startswith(before)
    assert "em +25.0 [+12.5,+37.5], content +50.0 [+37.5,+62.5]" in after
    assert "Self 75.0 %, Orig 50.0 %, Behavior EM 87.5 %, on 8 test cases of 3 questions" in after


def test_the_points_of_a_joint_grid_can_be_told_apart(tmp_path: Path) -> None:
    """Rules are no numbers: the description names them."""
    points = [
        {"kl_weight": weight, "learning_rate": rate, "rule": "fixed", "seeds": [0, 1], "gap": gaps(gap)}
        for weight, rate, gap in ((0, 1e-3, 0.0), (0, 3e-3, 0.125), (1, 1e-3, 0.25))
    ]
    store = open_store(tmp_path)
    store.write_json("sweep.json", {"rows": [], "aggregate": points})
    told: list[str] = []
    with JsonlTracker(str(tmp_path)) as tracker:
        tracker.describe = told.append
        track_aggregate(tracker, store, RunConfig(), ["kl_weight", "learning_rate", "rule"])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "sweep.kl_weight", "sweep.learning_rate", "sweep.seeds", "sweep.gap.em", "sweep.gap_ci.em_low")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (0, 0, 1e-3, 2, 0.0, -0.125), (1, 0, 3e-3, 2, 0.125, 0.0), (2, 1, 1e-3, 2, 0.25, 0.125),
    ]  # fmt: skip
    assert "| 1 | 0 | 0.003 | fixed | 2 | +12.5 [+0.0,+25.0] | +37.5 [+25.0,+50.0] |" in told[0]


def test_a_finished_run_in_mlflow(tmp_path: Path) -> None:
    """Through the functions of a run: the policy is ranked by its gap on the test cases, and known by its data."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    data = datasets(RunConfig(), {"train": "a1", "test": "b2"}, {"train": 6, "test": 8}, "c3", "organism")
    sweep = {"sweep": {"key": "kl_weight", "values": "[0, 1]", "seeds": "[0]"}}
    base = override(RunConfig(), {"output_dir": str(tmp_path)})
    ended = {0: gaps(-0.25), 1: gaps(0.25)}
    children = {}
    with open_tracker(base, "sweep", uri, params=sweep) as parent:
        for weight, gap in ended.items():
            name = f"kl_weight={weight},seed=0"
            cfg = override(base, {"kl_weight": weight, "output_dir": str(tmp_path / name)})
            store = open_store(cfg.output_dir)
            for file in ("summary.json", "details.json", UNTRAINED, TRAINED):
                store.write_bytes(file, b"{}")
            with open_tracker(cfg, name, uri, parent.run_id) as run:
                children[weight] = run.run_id
                run.log_datasets(data)
                run.log_step({"step": 0, "loss": 0.5, "lag": None})
                track_results(run, store, cfg, {**SUMMARY, "gap": gap}, [], data[1])
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [one for one in client.search_experiments() if one.name != "Default"]
    best = client.search_logged_models(
        [experiment.experiment_id], order_by=[{"field_name": "metrics.gap.em", "ascending": False}]
    )
    assert [(model.name, model.source_run_id) for model in best] == [
        ("kl_weight=1,seed=0", children[1]), ("kl_weight=0,seed=0", children[0]),
    ]  # fmt: skip
    assert best[0].tags["uri"] == str(tmp_path / "kl_weight=1,seed=0" / "policy") and best[0].params["kl_weight"] == "1"
    assert {(m.value, m.dataset_name, m.dataset_digest) for m in best[0].metrics if m.key == "gap.em"} == {
        (0.25, "organism test", "b2")
    }
    child = client.get_run(children[1])
    assert [(one.dataset.name, one.dataset.digest, one.tags[0].value) for one in child.inputs.dataset_inputs] == [
        ("organism train", "a1", "training"), ("organism test", "b2", "evaluation"), ("organism E(M0)", "c3", "labels"),
    ]  # fmt: skip
    assert [output.model_id for output in child.outputs.model_outputs] == [best[0].model_id]
    assert child.data.tags["kl_weight"] == "1" and "Self 75.0 %" in child.data.tags["mlflow.note.content"]
    assert "output_dir" not in child.data.params  # it differs between all runs: compare pages would draw it
    top = client.get_run(parent.run_id).data
    assert top.tags["sweep"] == "kl_weight" and "kl_weight" not in top.tags
    assert child.data.tags["mlflow.user"] == top.tags["mlflow.user"]
