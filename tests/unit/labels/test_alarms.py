"""Alarms: bounds by hand, and what stops a run. A run that is as it should be never sets one off."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from introspect_ray.config import AlarmConfig, RunConfig, load_config
from introspect_ray.engines.protocol import PromptTokens
from introspect_ray.errors import AlarmError
from introspect_ray.labels.alarms import Agreement, check_agreement, check_step, engine_gap, stop_on
from introspect_ray.labels.rules import binomial_interval, binomial_tail, online_label
from introspect_ray.loop import run
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance, StepLabels, StepMetrics

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


def test_nothing_measured_is_nothing_found():
    assert names(replace(ROW, engine_gap=None, off_format=None), off_format=0.0) == []  # fixed labels, or lag > 0
    assert (
        names(replace(ROW, engine_gap=9.0, off_format=1.0), engine_gap=None) == []
    )  # off, as off_format is by default


def test_the_error_names_what_the_numbers_and_the_remedy():
    with pytest.raises(AlarmError, match=r"step 3: .* 0\.01 nats .*alarms\.engine_gap=0\.001.* raise the bound"):
        stop_on(check_step(ROW, AlarmConfig(engine_gap=0.001)))
    stop_on([])


def test_the_presets_bound_fits_their_compute_type():
    assert load_config(None, {}).alarms.engine_gap == 0.01
    h100 = load_config(str(Path(__file__).parents[3] / "cluster" / "h100.yaml"), {"task.name": "hint_mmlu"})
    assert (h100.train.dtype, h100.rollout.dtype, h100.alarms.engine_gap) == ("bfloat16", "bfloat16", 0.5)


def test_binomial_tails_by_hand():
    """Three fair draws: P(K <= 0) = 1/8, P(K <= 1) = 4/8, P(K >= 2) = 4/8, P(K >= 3) = 1/8."""
    assert [binomial_tail(k, 3, 0.5) for k in range(4)] == pytest.approx([1 / 8, 4 / 8, 4 / 8, 1 / 8])
    # Two draws at 0.7: P(K <= 0) = 0.09, P(K <= 1) = 0.51 (1 is below the mean 1.4), P(K >= 2) = 0.49.
    assert [binomial_tail(k, 2, 0.7) for k in range(3)] == pytest.approx([0.09, 0.51, 0.49])
    assert [binomial_tail(k, 4, 1.0) for k in (3, 4)] == [0.0, 1.0]  # ν = 1 allows no wrong label at all
    assert [binomial_tail(k, 4, 0.0) for k in (0, 1)] == [1.0, 0.0]


@pytest.mark.parametrize("nu", [0.0, 0.4, 0.7, 0.99, 1.0])
def test_a_tail_is_below_the_level_exactly_outside_the_interval(nu):
    low, high = binomial_interval(nu, 60, 1e-4)
    outside = [k for k in range(61) if not low <= k / 60 <= high]
    assert outside == [k for k in range(61) if binomial_tail(k, 60, nu) < 1e-4]


def test_engine_gap_by_hand():
    pair = BehaviorPair("c", "A", "B", (-0.1, -2.4), (-1.9, -0.2), False, False, 0)
    assert engine_gap([pair], {"c": ((-0.1, -2.4), (-1.9, -0.5))}) == pytest.approx(0.3)
    assert engine_gap([], {}) is None


def label(case: str, agrees: bool, step: int = 0, current: bool = True) -> Label:
    truth = Explanation(False, "A")
    made = Provenance("online", "m", 0, 0, 0, step, not agrees, 0.5)
    return Label(case, truth if agrees else Explanation(True, "B"), truth if current else None, made)


def test_agreement_counts_a_draw_once():
    seen = Agreement()
    seen.add([label("a", True), label("a", True), label("b", False), label("c", True, current=False)])
    seen.add([label("a", True, step=1)])
    assert (seen.agreeing, seen.draws) == (2, 3)  # a and b of step 0, a of step 1; c was not sampled


def test_agreement_alarm_by_hand():
    """At ν = 0.5, ten of ten agree with probability 1/1024; at ν = 1 one wrong label is one too many."""
    ten = Agreement(10, 10)
    assert check_agreement(ten, 0.5, 1 / 1025) == []
    (found,) = check_agreement(ten, 0.5, 1 / 1023)
    assert found.name == "agreement" and found.value == 1.0
    assert (
        "10 of 10 labels (1.0000)" in found.message
        and "supervision.agreement=0.5 allows 0.1000 to 0.9000" in found.message
    )
    assert check_agreement(Agreement(999, 1000), 1.0, 1e-9) != []
    assert check_agreement(Agreement(1000, 1000), 1.0, 1e-9) == []
    assert check_agreement(Agreement(), 0.5, 1e-9) == [] and check_agreement(Agreement(0, 1000), 1.0, None) == []


@pytest.mark.parametrize("nu", [0.4, 0.7, 1.0])
def test_labels_of_the_rule_itself_set_nothing_off(nu):
    """1,500 steps of 8, checked after every step as in a run, for three seeds."""
    for seed in range(3):
        seen = Agreement()
        for step in range(1500):
            pairs = [BehaviorPair(f"c{i}", "A", "B", (), (), False, False, step) for i in range(8)]
            seen.add(
                [
                    online_label(p, "ABCD", agreement=nu, wrong_label="content", seed=seed, step=step, source_model="m")
                    for p in pairs
                ]
            )
            assert check_agreement(seen, nu, AlarmConfig().agreement) == []


class TinyLearner:
    """Enough of a Learner for the loop: its label logprobs are off by `gap` from those of the engine."""

    def __init__(self, gap: float) -> None:
        self.last_logprobs = {"c": ((-0.5 - gap, -1.0), (-0.5, -1.0))}
        self.steps = 0

    def step(self, labels, m0):
        self.steps += 1
        shares = ("explanation_self", "explanation_orig", "behavior_em", "realised_at_consumption")
        return {"loss": 1.0, "cross_entropy": 1.0, "kl": 0.0, "grad_norm": 1.0, **dict.fromkeys(shares, 1.0)}


class Supply:
    """One label a step, from the version that was asked for."""

    def publish(self, learner, version, probe):
        self.version = version

    def request(self, step, version):
        pass

    def fetch(self, step):
        pair = BehaviorPair("c", "A", "A", (-0.5, -1.0), (-0.5, -1.0), False, True, self.version)
        return StepLabels([label("c", True, step)], [pair], 1.0, 0.5, 0.25, 0.0, 0.0, 0.0)


def looped(gap: float, **alarms: float | None) -> tuple[list[StepMetrics], TinyLearner]:
    cfg = RunConfig.model_validate(
        {"steps": 3, "batch_size": 1, "supervision": {"rule": "online"}, "alarms": {"engine_gap": 0.01, **alarms}}
    )
    rows, learner = [], TinyLearner(gap)
    try:
        run(cfg, learner, Supply(), SimpleNamespace(report=rows.append), {}, [None])
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


@pytest.mark.parametrize(("mode", "warned"), [("warn", True), ("stop", True), ("off", False)])
def test_collapsed_labels_of_m0(mode, warned, capsys):
    """Nine of ten cases unchanged, and all ten answered B without the cue; always saying "unchanged B" is
    right for nine: three findings."""
    from introspect_ray.runs.jobs import report_findings

    pairs = [BehaviorPair(f"c{i}", "A" if i == 0 else "B", "B", (), (), False, False, 0) for i in range(10)]
    base = SimpleNamespace(m0_test=pairs, m0_explanations=[pair.explanation for pair in pairs])
    cfg = RunConfig.model_validate({"alarms": {"collapse": mode}})
    if mode == "stop":
        with pytest.raises(AlarmError, match=r"9 of 10 .*unchanged.*; .*B for 10 of 10.*set alarms\.collapse=warn"):
            report_findings(cfg, base)
    else:
        report_findings(cfg, base)
    said = capsys.readouterr()
    assert said.err.count("warning: m0: ") == (3 if warned else 0)
    assert "always saying 'unchanged B' would score 0.900" in said.out


def test_the_relabeler_hands_the_agreement_alarm_to_who_fetches(tmp_path, monkeypatch):
    """A rule that flips everything while ν = 0.9 was asked for: P(K = 0 of 16) = 1e-16."""
    from introspect_ray.actors.relabeler import Relabeler
    from introspect_ray.labels import rules as supervision
    from introspect_ray.schedule import plan_ids

    cases = {f"c{i}": ("A", "B") for i in range(16)}
    cfg = RunConfig.model_validate({"batch_size": 16, "steps": 1, "supervision": {"rule": "online", "agreement": 0.9}})
    true_rule = supervision.online_label
    monkeypatch.setattr(supervision, "online_label", lambda *a, **k: true_rule(*a, **{**k, "agreement": 0.0}))

    async def collect(groups, *_):
        return await asyncio.gather(*groups)

    pool = SimpleNamespace(collect=collect)
    maker = Relabeler(cfg, supervision.Sources(cases, "m", {}), str(tmp_path), 1, pool)

    async def step() -> StepLabels:
        async def group():
            ids = plan_ids(cfg, list(cases), 0)
            pairs = [BehaviorPair(i, "A", "B", (), (), False, False, 0) for i in ids]
            return SimpleNamespace(pairs=pairs, seconds=0.0, idle_s=0.0, prompt_tokens=PromptTokens())

        await maker.relabel(0, 0, None, [], [group()])
        return await maker.fetch(0, 0)

    with pytest.raises(AlarmError, match=r"0 of 16 labels .* supervision\.agreement=0\.9 allows"):
        asyncio.run(step())
    assert len(list(tmp_path.iterdir())) == 1  # the labels are there to be audited
