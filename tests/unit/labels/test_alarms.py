"""Alarms: their bounds by hand. A correct run never sets one off."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from introspect_ray.config import AlarmConfig, load_config
from introspect_ray.errors import AlarmError
from introspect_ray.judges import JudgeReport
from introspect_ray.labels.alarms import (
    AgreementCounts,
    check_agreement,
    check_step,
    check_verdicts,
    engine_gap,
    stop_on,
    worst_gap,
)
from introspect_ray.labels.rules import online_label
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance, StepMetrics

ROW = StepMetrics(
    step=3,
    loss=1.0,
    cross_entropy=1.0,
    kl=0.0,
    grad_norm=1.0,
    explanation_self=0.5,
    explanation_orig=0.5,
    behavior_em=1.0,
    requested_agreement=0.7,
    realised_at_labelling=0.7,
    realised_at_consumption=0.7,
    engine_gap=0.01,
    off_format=0.25,
    prefix_hit_rate=None,
    lag=0,
    trainer_idle_s=0.0,
    rollout_idle_s=0.0,
    relabeler_idle_s=0.0,
    step_s=1.0,
)


def names(row: StepMetrics, **bounds: float | None) -> list[str]:
    return [finding.name for finding in check_step(row, AlarmConfig(**bounds))]


def test_a_step_is_stopped_beyond_a_bound_and_not_on_it():
    assert names(ROW, engine_gap=0.01, off_format=0.25) == []
    assert names(ROW, engine_gap=0.0099) == ["engine_gap"]
    assert names(ROW, engine_gap=None, off_format=0.24) == ["off_format"]
    assert names(replace(ROW, engine_gap=math.nan)) == ["engine_gap"]  # `gap > bound` would let NaN pass


def test_no_measurement_or_no_bound_is_no_finding():
    assert names(replace(ROW, engine_gap=None, off_format=None), off_format=0.0) == []  # fixed labels, or lag > 0
    beyond = replace(ROW, engine_gap=9.0, off_format=1.0)
    assert names(beyond, engine_gap=None) == []  # both are off: off_format is by default


def test_the_error_names_the_metric_the_numbers_and_the_remedy():
    with pytest.raises(AlarmError, match=r"step 3: .* 0\.01 nats .*alarms\.engine_gap=0\.001.* raise the bound"):
        stop_on(check_step(ROW, AlarmConfig(engine_gap=0.001)))
    stop_on([])


def test_the_bound_of_a_preset_fits_its_compute_type():
    assert load_config(None, {}).alarms.engine_gap == 0.01
    h100 = load_config(str(Path(__file__).parents[3] / "cluster" / "h100.yaml"), {"task.name": "hint_mmlu"})
    assert (h100.train.dtype, h100.rollout.dtype, h100.alarms.engine_gap) == ("bfloat16", "bfloat16", 0.5)


def test_worst_gap_is_the_largest_difference_or_nan():
    """Gaps 0.5 and 0.25; `max` alone would return 0.5 beside a NaN that comes second."""
    assert worst_gap([1.0, 2.0], [1.5, 1.75]) == 0.5
    assert math.isnan(worst_gap([1.0, math.nan], [1.5, 1.0])) and math.isnan(worst_gap([math.nan, 1.0], [1.0, 1.5]))
    with pytest.raises(ValueError, match="shorter"):
        worst_gap([1.0, 2.0], [1.0])


def test_engine_gap_by_hand():
    pair = BehaviorPair("c", "A", "B", (-0.1, -2.4), (-1.9, -0.2), False, False, 0)
    assert engine_gap([pair], {"c": ((-0.1, -2.4), (-1.9, -0.5))}) == pytest.approx(0.3)
    assert engine_gap([], {}) is None


def label(case: str, agrees: bool, step: int = 0, current: bool = True) -> Label:
    truth = Explanation(False, "A")
    made = Provenance("online", "m", 0, 0, 0, step, not agrees, 0.5)
    return Label(case, truth if agrees else Explanation(True, "B"), truth if current else None, made)


def test_a_case_that_a_step_holds_twice_counts_once():
    counts = AgreementCounts()
    counts.add([label("a", True), label("a", True), label("b", False), label("c", True, current=False)])
    counts.add([label("a", True, step=1)])
    assert (counts.agreeing, counts.total) == (2, 3)  # a and b of step 0, a of step 1; c was not sampled


def test_agreement_alarm_by_hand():
    """At ν = 0.5, ten of ten agree with probability 1/1024; at ν = 1 one wrong label is one too many."""
    ten = AgreementCounts(10, 10)
    assert check_agreement(ten, 0.5, 1 / 1025) == []
    (found,) = check_agreement(ten, 0.5, 1 / 1023)
    assert found.name == "agreement" and found.value == 1.0
    assert "10 of 10 labels (1.0000)" in found.message
    assert "supervision.agreement=0.5 allows 0.1000 to 0.9000" in found.message
    assert check_agreement(AgreementCounts(999, 1000), 1.0, 1e-9) != []
    assert check_agreement(AgreementCounts(1000, 1000), 1.0, 1e-9) == []
    assert check_agreement(AgreementCounts(), 0.5, 1e-9) == []
    assert check_agreement(AgreementCounts(0, 1000), 1.0, None) == []


@pytest.mark.parametrize("nu", [0.4, 0.7, 1.0])
def test_labels_of_the_online_rule_set_off_no_alarm(nu):
    """1,500 steps of 8, checked after every step as in a run, for three seeds."""
    for seed in range(3):
        counts = AgreementCounts()
        for step in range(1500):
            pairs = [BehaviorPair(f"c{i}", "A", "B", (), (), False, False, step) for i in range(8)]
            how = {"agreement": nu, "wrong_label": "content", "seed": seed, "step": step, "source_model": "m"}
            counts.add(online_label(pair, "ABCD", **how) for pair in pairs)
            assert check_agreement(counts, nu, AlarmConfig().agreement) == []


@pytest.mark.parametrize(("unjudged", "replies", "stops"), [(4, 4, False), (5, 5, True), (6, 100, False)])
def test_a_judge_that_falls_silent_in_training_stops_the_run(unjudged, replies, stops):
    """At a bound of 0.05, four of four have the probability 0.05^4 = 6.3e-6, five of five 3.1e-7; six of a hundred are
    beyond the bound by chance in 38 % of such runs."""
    found = JudgeReport("keyword:x", replies, unjudged, "", None)
    if stops:
        with pytest.raises(AlarmError, match="no verdict on 5 of 5 replies"):
            check_verdicts(found, 0.05)
    else:
        check_verdicts(found, 0.05)
