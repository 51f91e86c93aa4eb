"""Step metrics from the status board to the tracker and the progress bar, and what survives the driver."""

from __future__ import annotations

import json
import math
from typing import Any, ClassVar

from introspect_ray.runs.progress import StepTracking
from introspect_ray.runs.results import missing_rows, step_rows
from introspect_ray.storage import open_store
from introspect_ray.storage.tracking import JsonlTracker


def row(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 0.5}


def test_the_rows_before_a_checkpoint_last_with_it(s3_env):
    """Checkpoints after 4 and 8 steps; the tracker alone would wait for 50 rows. Nothing is closed, as in a crash."""
    store = open_store(s3_env)
    steps = StepTracking(None, "run", JsonlTracker(s3_env), flush_every=4)
    steps.track([row(0), row(1), row(2)])
    assert not store.exists("metrics.jsonl")
    steps.track([row(3), row(4)])
    steps.track([row(5), row(6)])
    assert [kept["step"] for kept in step_rows(store)] == [0, 1, 2, 3, 4]
    with JsonlTracker(s3_env) as resumed:  # goes on at the checkpoint of step 4
        StepTracking(None, "run", resumed).track([row(step) for step in range(4, 10)])
    assert [json.loads(line)["step"] for line in store.read_bytes("metrics.jsonl").splitlines()] == [
        0, 1, 2, 3, 4, *range(4, 10),
    ]  # fmt: skip
    assert missing_rows(step_rows(store), 10) == []


def test_an_error_of_the_tracker_is_told_once_and_ends_no_run(capsys):
    class Refusing:
        rows: ClassVar[list[dict]] = []

        def log_step(self, row: dict) -> None:
            self.rows.append(row)

        def flush(self) -> None:
            raise OSError("no room")

    tracker = Refusing()
    steps = StepTracking(None, "run", tracker, flush_every=1)
    steps.track([row(0)])
    steps.track([{**row(1), "kl": math.nan}])
    assert tracker.rows == [row(0), row(1)]
    assert capsys.readouterr().err.splitlines() == [
        "warning: step metrics: no room; the run goes on",
        "warning: kl not finite, from step 1 on: left out of the metrics",
    ]


def test_missing_steps_are_named_with_the_numbers():
    assert missing_rows([row(0), row(1)], 2) == []
    (line,) = missing_rows([row(0), row(3), row(6)], 7)
    assert line.startswith("metrics.jsonl has 3 of 7 steps, without 4 from step 1 to 5: ")
