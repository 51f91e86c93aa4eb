"""The step loop stops at an alarm, after the step's metrics are on record, and at a checkpoint when a node goes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from introspect_ray.config import RunConfig
from introspect_ray.errors import AlarmError, Halted, Interrupted
from introspect_ray.loop import run
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance, StepLabels, StepMetrics


class TinyLearner:
    """Enough of a Learner for the loop: its label logprobs are off by `gap` from those of the engine."""

    def __init__(self, gap: float) -> None:
        self.last_logprobs = {"c": ((-0.5 - gap, -1.0), (-0.5, -1.0))}
        self.steps = 0

    def step(self, labels, m0, auxiliary):
        self.steps += 1
        shares = ("explanation_self", "explanation_orig", "behavior_em", "realised_at_consumption")
        losses = {"loss": 1.0, "cross_entropy": 1.0, "kl": 0.0, "auxiliary": None, "grad_norm": 1.0}
        return {**losses, **dict.fromkeys(shares, 1.0)}


class Supply:
    """Supplies one label per step, from the version that was published last."""

    def publish(self, learner, version):
        self.version = version

    def request(self, step, version):
        pass

    def fetch(self, step):
        pair = BehaviorPair("c", "A", "A", (-0.5, -1.0), (-0.5, -1.0), False, True, self.version)
        truth = Explanation(False, "A")
        label = Label("c", truth, truth, Provenance("online", "m", 0, 0, 0, step, False, 0.5))
        return StepLabels([label], [pair], 1.0, 0.5, 0.25, 0.0, 0.0, 0.0)


def looped(gap: float, **alarms: float | None) -> tuple[list[StepMetrics], TinyLearner]:
    cfg = RunConfig.model_validate(
        {"steps": 3, "batch_size": 1, "supervision": {"rule": "online"}, "alarms": {"engine_gap": 0.01, **alarms}}
    )
    rows, learner = [], TinyLearner(gap)
    try:
        conductor = SimpleNamespace(report=rows.append, node_is_going=lambda: False)
        run(cfg, learner, Supply(), conductor, {}, [None])
    except AlarmError as error:
        rows.append(error)
    return rows, learner


def test_the_loop_stops_after_the_step_that_is_on_record():
    rows, learner = looped(0.02)
    assert learner.steps == 1 and len(rows) == 2
    assert rows[0].engine_gap == pytest.approx(0.02) and rows[0].off_format == 0.5
    assert rows[0].prefix_hit_rate == 0.25
    assert isinstance(rows[1], AlarmError) and "engine_gap" in str(rows[1])
    assert "off_format" in str(looped(0.0, off_format=0.4)[0][-1])


def test_the_loop_goes_on_within_the_bounds():
    rows, learner = looped(0.009)
    assert learner.steps == 3 and [row.step for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(("noticed_at", "saved", "steps"), [(0, [1], 1), (1, [2], 2), (2, [2], 3)])
def test_a_node_that_goes_costs_no_step(noticed_at, saved, steps):
    """Three steps, checkpoints every two. Noticed after step 0, a checkpoint is written there; after step 1 the one
    that is due is enough; after the last step there is only the policy to export."""
    cfg = RunConfig.model_validate(
        {"steps": 3, "batch_size": 1, "supervision": {"rule": "online"}, "train": {"checkpoint_every": 2}}
    )
    learner, supply, written = TinyLearner(0.0), Supply(), []

    def leave(step: int) -> None:
        raise Interrupted(f"checkpoint {step}")

    conductor = SimpleNamespace(
        report=lambda row: None,
        node_is_going=lambda: learner.steps > noticed_at,
        checkpoint=lambda step, learner, pending: written.append(step),
        leave=leave,
    )
    supply.pending = list
    try:
        run(cfg, learner, supply, conductor, {}, [None])
    except Interrupted as left:
        assert str(left) == f"checkpoint {saved[-1]}" and steps < 3
    assert (written, learner.steps) == (saved, steps)


def test_a_job_that_is_asked_to_end_leaves_a_checkpoint_after_the_step():
    """Also where none is due; a node that is about to go at the same time changes nothing."""

    class Asked(Supply):
        def fetch(self, step):
            return replace(super().fetch(step), halt=step == 1)

    def halt(step: int) -> None:
        raise Halted(f"checkpoint {step}")

    learner, supply, written = TinyLearner(0.0), Asked(), []
    supply.pending = list
    conductor = SimpleNamespace(
        report=lambda row: None,
        node_is_going=lambda: learner.steps == 2,
        checkpoint=lambda step, learner, pending: written.append(step),
        halt=halt,
    )
    flat = {"steps": 4, "batch_size": 1, "supervision": {"rule": "online"}, "train": {"checkpoint_every": 0}}
    with pytest.raises(Halted, match="checkpoint 2"):
        run(RunConfig.model_validate(flat), learner, supply, conductor, {}, [None])
    assert (written, learner.steps) == ([2], 2)


def test_weights_are_scored_every_so_many_steps_before_they_are_updated():
    """At lag 0 with the version that the step has just delivered."""
    scored: list[tuple[int, int]] = []

    class Scoring(Supply):
        def score(self, step, learner):
            scored.append((step, self.version))

    flat = {"steps": 6, "batch_size": 1, "supervision": {"rule": "online"}, "eval": {"every": 2}}
    conductor = SimpleNamespace(report=lambda row: None, node_is_going=lambda: False)
    run(RunConfig.model_validate(flat), TinyLearner(0.0), Scoring(), conductor, {}, [None])
    assert scored == [(2, 2), (4, 4)]
