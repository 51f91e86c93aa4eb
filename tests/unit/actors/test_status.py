"""The status board: what drivers and `introspect-ray status` read of a job, also after a restart from a checkpoint."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import pytest

from introspect_ray.actors import status
from introspect_ray.actors.status import StatusBoard, activity
from introspect_ray.records import StepMetrics
from introspect_ray.storage.checkpoints import Saved


def metrics(step: int, loss: float) -> StepMetrics:
    return StepMetrics(step, loss, *[None] * (len(fields(StepMetrics)) - 2))


@pytest.fixture
def clock(monkeypatch):
    """Seconds, moved by hand; the board's time and the activity's."""
    now = SimpleNamespace(at=1000.0)
    for name in ("time", "monotonic"):
        monkeypatch.setattr(status.time, name, lambda: now.at)
    return now


def test_a_step_that_is_posted_again_replaces_its_row_and_is_the_latest():
    board = StatusBoard()
    for run, step, loss in [("a", 0, 0.9), ("a", 1, 0.8), ("a", 2, 0.7), ("b", 0, 0.6), ("a", 1, 0.5)]:
        board.post(run, metrics(step, loss))
    assert [(row["step"], row["loss"]) for row in board.rows("a")] == [(0, 0.9), (1, 0.5), (2, 0.7)]
    assert [row["step"] for row in board.rows("a", after=1)] == [2]
    assert board.rows("c") == []
    assert [(run, row["step"]) for run, row in board.latest().items()] == [("b", 0), ("a", 1)]


def test_the_rate_is_of_the_recent_steps_and_starts_again_after_a_restart(clock):
    """Steps 0, 1, 2 at 1000, 1002 and 1008 s: two steps in 8 s. Back at step 1 there is no rate, then 1 step in 2 s."""
    board = StatusBoard({"output_dir": "runs/x"})
    for at, step in [(1000.0, 0), (1002.0, 1), (1008.0, 2)]:
        clock.at = at
        board.post("a", metrics(step, 0.5))
    run = board.snapshot()["runs"]["a"]
    assert (run["step"], run["at"], run["rate"], run["loss"]) == (2, 1008.0, 0.25, 0.5)
    board.post("a", metrics(1, 0.5))
    assert board.snapshot()["runs"]["a"]["rate"] is None
    clock.at = 1010.0
    board.post("a", metrics(2, 0.5))
    assert board.snapshot()["runs"]["a"]["rate"] == 0.5
    assert board.snapshot()["about"] == {"started": 1000.0, "output_dir": "runs/x"}


def test_the_last_checkpoint_is_kept_by_run(clock):
    board = StatusBoard()
    board.post("a", metrics(4, 0.5))
    board.saved("a", Saved(2, 0, 10, 0.1, 1.0))
    board.saved("a", Saved(4, 0, 12, 0.2, 2.0))
    assert board.snapshot()["runs"]["a"]["checkpoint"] == {
        "step": 4, "rank": 0, "bytes": 12, "stall_s": 0.2, "write_s": 2.0, "at": 1000.0,
    }  # fmt: skip


class Local:
    """The board as an actor's handle: every method has `remote`. It counts how often it hears how far something is."""

    def __init__(self) -> None:
        self.board, self.told = StatusBoard(), 0

    def __getattr__(self, name: str) -> SimpleNamespace:
        def remote(*args: object) -> None:
            self.told += name == "advance"
            getattr(self.board, name)(*args)

        return SimpleNamespace(remote=remote)


def test_an_activity_is_on_the_board_while_it_lasts_and_reports_once_a_second(clock):
    handle = Local()
    with activity(handle, "labels of M0", 100, "case") as advance:
        for _ in range(4):  # in the same moment: one report
            advance(8)
        clock.at += 1.0
        advance(8)
        (one,) = handle.board.activities()
        assert one == {"what": "labels of M0", "total": 100, "unit": "case", "done": 40, "since": 1000.0}
        assert handle.told == 2
    assert handle.board.activities() == []


def test_an_activity_that_fails_has_ended():
    handle = Local()
    with pytest.raises(ValueError), activity(handle, "x", 1, "case"):
        raise ValueError
    assert handle.board.activities() == []


def test_without_a_board_nothing_is_said():
    with activity(None, "x", 3, "case") as advance:
        advance(3)


def test_the_board_says_who_waits_until_nobody_does():
    board = StatusBoard()
    board.wait("a", ["2 of 4 rollout actors need 1 GPU each, since 05:20:11"])
    board.wait("b", ["4 training worker(s) need 1 GPU each, since 05:20:40"])
    board.wait("a", [])
    assert board.snapshot()["waiting"] == board.waiting()
    assert board.waiting() == {"b": ["4 training worker(s) need 1 GPU each, since 05:20:40"]}
