"""Scores made while a policy trains: on which cases, and the same numbers as the evaluation of these cases."""

from __future__ import annotations

from types import SimpleNamespace

from introspect_ray.actors.status import StatusBoard
from introspect_ray.config import load_config
from introspect_ray.records import Answers, BehaviorPair
from introspect_ray.runs.interim import interim_rows


def pair(case: str) -> BehaviorPair:
    return BehaviorPair(case, "A", "B", (-0.1, -2.0), (-2.0, -0.1), False, False, 0)


def test_the_first_cases_of_the_dev_split_are_asked():
    cases = SimpleNamespace(splits=["test", "dev", "test", "dev", "dev"])
    assert interim_rows(load_config(overrides={"eval.every": 2}), cases) == [1, 3, 4]
    assert interim_rows(load_config(overrides={"eval.every": 2, "eval.interim_cases": 2}), cases) == [1, 3]


def test_answers_are_read_once_and_not_again_after_a_restart():
    """A training that starts again from a checkpoint answers the same steps anew."""
    board = StatusBoard()
    for step in (10, 5):
        board.post_answers("run", Answers(step, [pair("c")], [(1, 2)]))
    assert [one.step for one in board.answers("run")] == [5, 10]
    assert board.answers("run", 10) == []
    board.post_answers("run", Answers(10, [pair("c")], [(1, 2)]))
    board.post_answers("run", Answers(15, [pair("c")], [(1, 2)]))
    assert [one.step for one in board.answers("run", 10)] == [15]
