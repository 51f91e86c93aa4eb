"""A run's record is whole, is made whole, or the run is not finished: labels, rows and held-out cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from introspect_ray.config import RunConfig
from introspect_ray.errors import Incomplete
from introspect_ray.labels.rules import Sources, make_labels
from introspect_ray.labels.store import LabelWriter, read_labels
from introspect_ray.records import BehaviorPair, Label
from introspect_ray.runs.complete import complete_labels, complete_rows, finished, go_back, lacks
from introspect_ray.runs.results import step_rows
from introspect_ray.schedule import plan_ids
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.evaluation_table import TRAINED, to_parquet, to_table
from introspect_ray.storage import Store, open_store
from introspect_ray.storage.checkpoints import CheckpointWriter, list_names
from introspect_ray.storage.tracking import JsonlTracker

STEPS, BATCH, HELD_OUT = 8, 4, 3
RUN = {"seed": 0}
CASES = [f"c{number}" for number in range(10)]


def pair(case: str, version: int = 0) -> BehaviorPair:
    return BehaviorPair(case, "A", "B", (0.0, -1.0), (-1.0, 0.0), False, False, version)


SOURCES = Sources(dict.fromkeys(CASES, ("A", "B")), "organism", {case: pair(case) for case in CASES})


def config(out: Path, rule: str = "online") -> RunConfig:
    keys = {"steps": STEPS, "batch_size": BATCH, "supervision": {"rule": rule}, "output_dir": str(out)}
    return RunConfig.model_validate(keys)


def labels_of(cfg: RunConfig, steps: range) -> list[Label]:
    found = []
    for step in steps:
        ids = plan_ids(cfg, CASES, step)
        found += make_labels(cfg, SOURCES, step, ids, [pair(case, step) for case in ids])
    return found


def whole_run(out: Path, rule: str = "online", checkpoints: tuple[int, ...] = (4, 6)) -> tuple[RunConfig, Store]:
    """The folder of a finished run: a label part per two steps, rows, held-out cases, checkpoints and a summary."""
    cfg, store = config(out, rule), open_store(out)
    writer = LabelWriter(store.join("labels"))
    for first in range(0, STEPS, 2):
        writer.append(labels_of(cfg, range(first, first + 2)))
        writer.flush()
    with JsonlTracker(str(out)) as tracker:
        for step in range(STEPS):
            tracker.log_step({"step": step, "loss": 0.5})
    ids = CASES[:HELD_OUT]
    pairs = [pair(case) for case in ids]
    cases = EvaluatedCases(
        ids, [""] * HELD_OUT, [""] * HELD_OUT, [("A", "B")] * HELD_OUT, {"m0": pairs, "policy": pairs},
        [""] * HELD_OUT, [None] * HELD_OUT, questions=ids, splits=["dev", "test", "test"],
    )  # fmt: skip
    store.write_bytes(TRAINED, to_parquet(to_table(cases)))
    for step in checkpoints:
        saved = CheckpointWriter(str(out), RUN, 0, 1, None)
        saved.save(step, lambda folder: Path(folder, "shard").write_bytes(b"weights") and None)
        saved.wait()
    store.write_json("summary.json", {"cases": {"test": 2}, "dev": {"cases": 1}})
    return cfg, store


def part(out: Path, steps: str) -> Path:
    return next((out / "labels").glob(f"steps-{steps}*"))


def test_a_whole_run_is_finished(tmp_path: Path) -> None:
    cfg, store = whole_run(tmp_path)
    assert lacks(store, cfg, HELD_OUT) == []
    assert finished(cfg) == store.read_json("summary.json")
    assert finished(config(tmp_path / "none")) is None


def test_everything_that_is_missing_is_named_with_the_numbers(tmp_path: Path) -> None:
    cfg, store = whole_run(tmp_path, checkpoints=())
    part(tmp_path, "00000002").unlink()
    (tmp_path / TRAINED).unlink()
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(rows[:5] + rows[6:]))
    labels, steps, cases = lacks(store, cfg, HELD_OUT)
    assert labels == "labels/ has 24 of 32 labels: 2 steps from 2 to 3 have not the 4 of their batch"
    assert steps.startswith("metrics.jsonl has 7 of 8 steps, without 1 from step 5 to 5")
    assert cases == f"{TRAINED} has 0 of 3 held-out cases"
    with pytest.raises(Incomplete, match=r"is not finished: labels/ has 24 of 32 .*; metrics.jsonl .*; evaluation/"):
        finished(cfg)


def test_labels_twice_are_no_whole_record(tmp_path: Path) -> None:
    """As two jobs in one folder left them."""
    cfg, store = whole_run(tmp_path, checkpoints=())
    writer = LabelWriter(store.join("labels"))
    writer.append(labels_of(cfg, range(2, 4)))
    writer.close()
    assert lacks(store, cfg, HELD_OUT) == [
        "labels/ has 40 of 32 labels: 2 steps from 2 to 3 have not the 4 of their batch"
    ]


def test_lost_fixed_labels_are_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, store = whole_run(tmp_path, "fixed")
    before = list(read_labels(store.join("labels")))
    part(tmp_path, "00000002").unlink()
    assert finished(cfg) is None  # going on from a checkpoint closes the gap
    assert "made again from a checkpoint" in capsys.readouterr().err
    complete_labels(store, cfg, SOURCES)
    assert repr(list(read_labels(store.join("labels")))) == repr(before)  # NaN draws are equal as text alone
    assert finished(cfg) is not None


@pytest.mark.parametrize(
    ("lost", "left"), [("00000006", ["step-00000006", "step-00000004"]), ("00000004", ["step-00000004"])]
)
def test_training_goes_back_to_where_lost_labels_can_be_made(tmp_path: Path, lost: str, left: list[str]) -> None:
    """Labels of step 6 and later are made again from the checkpoint of step 6 anyway."""
    cfg, store = whole_run(tmp_path)
    part(tmp_path, lost).unlink()
    assert finished(cfg) is None
    said: list[str] = []
    go_back(store, cfg, RUN, said.extend)
    assert list_names(store) == left
    assert [("going back to the checkpoint of step 4" in line) for line in said] == [True] * (len(left) == 1)


def test_training_never_goes_back_to_nothing(tmp_path: Path) -> None:
    """Not without an older checkpoint, and not to one that is damaged: what was trained is kept, and it is told."""
    cfg, store = whole_run(tmp_path)
    part(tmp_path, "00000002").unlink()
    with pytest.raises(Incomplete, match="--overwrite makes the whole run again"):
        finished(cfg)
    said: list[str] = []
    go_back(store, cfg, RUN, said.extend)
    part(tmp_path, "00000004").unlink()
    (tmp_path / "checkpoints/step-00000004/shard").write_bytes(b"other weights")
    go_back(store, cfg, RUN, said.extend)
    assert len(list_names(store)) == 2
    assert len(said) == 2 and all("this run cannot be complete" in line for line in said)


def test_lost_rows_are_written_from_those_of_rank_0(tmp_path: Path) -> None:
    _, store = whole_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 0.5}\n{"step": 1, "lo')
    with JsonlTracker(str(tmp_path)) as tracker:
        rows = complete_rows(store, tracker, [{"step": step, "loss": 0.25, "kl": None} for step in range(STEPS)])
    for found in (rows, step_rows(store)):
        assert [(row["step"], row["loss"]) for row in found] == [(0, 0.5), *((step, 0.25) for step in range(1, STEPS))]
