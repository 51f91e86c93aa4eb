"""The status board: what drivers read of a run, also after it went back to a checkpoint."""

from __future__ import annotations

from dataclasses import fields

from introspect_ray.actors.status import StatusBoard
from introspect_ray.records import StepMetrics


def metrics(step: int, loss: float) -> StepMetrics:
    return StepMetrics(step, loss, *[None] * (len(fields(StepMetrics)) - 2))


def test_a_step_that_is_posted_again_replaces_its_row_and_is_the_latest():
    board = StatusBoard()
    for run, step, loss in [("a", 0, 0.9), ("a", 1, 0.8), ("a", 2, 0.7), ("b", 0, 0.6), ("a", 1, 0.5)]:
        board.post(run, metrics(step, loss))
    assert [(row["step"], row["loss"]) for row in board.rows("a")] == [(0, 0.9), (1, 0.5), (2, 0.7)]
    assert [row["step"] for row in board.rows("a", after=1)] == [2]
    assert board.rows("c") == []
    assert [(run, row["step"]) for run, row in board.latest().items()] == [("b", 0), ("a", 1)]


def test_the_board_says_who_waits_until_nobody_does():
    board = StatusBoard()
    board.wait("a", ["2 of 4 rollout actors need 1 GPU each, since 05:20:11"])
    board.wait("b", ["4 training worker(s) need 1 GPU each, since 05:20:40"])
    board.wait("a", [])
    assert board.waiting() == {"b": ["4 training worker(s) need 1 GPU each, since 05:20:40"]}
