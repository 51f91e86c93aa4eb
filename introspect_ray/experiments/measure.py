"""Numbers that several figures share: scores of runs at a point, and gaps with their intervals. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from introspect_ray.experiments.protocol import Run
from introspect_ray.scores.drawing import at as value_at
from introspect_ray.scores.drawing import leaf
from introspect_ray.scores.evaluated_cases import POLICY, TEST, EvaluatedCases
from introspect_ray.scores.metrics import constant_explainer, explanation_scores, over_seeds
from introspect_ray.scores.statistics import (
    Estimate,
    World,
    bootstrap,
    clustered,
    over_worlds,
    paired_t,
    right_about,
    run_differences,
    world_of,
)

PARTS = {"em": "em", "content": "content", "changed_accuracy": "changed"}  # of a gap, and their names in rows
SCORES = ("em", "content", "changed_f1", "unchanged_f1")


def finished(runs: Sequence[Run]) -> list[Run]:
    """Without those that an alarm stopped."""
    return [run for run in runs if run.failed is None]


def stopped(runs: Sequence[Run]) -> list[str]:
    """A note for each run that an alarm stopped."""
    return [f"{run.study} {shown(run.point)}, seed {run.seed}: stopped, {run.failed}" for run in runs if run.failed]


def shown(point: Mapping[str, Any]) -> str:
    """Example: "kl_weight=0.1, rule=online"."""
    return ", ".join(f"{leaf(key)}={value}" for key, value in point.items()) or "as set"


def at(runs: Sequence[Run], **point: Any) -> list[Run]:
    """The finished runs whose point has these values. Dots in keys are written as two underscores."""
    wanted = {key.replace("__", "."): value for key, value in point.items()}
    return [run for run in finished(runs) if all(run.point.get(key) == value for key, value in wanted.items())]


def by_point(runs: Sequence[Run]) -> list[list[Run]]:
    """Finished runs of each point, which differ in their seeds alone, in order."""
    points: dict[str, list[Run]] = {}
    for run in finished(runs):
        points.setdefault(shown(run.point), []).append(run)
    return list(points.values())


def mean(runs: Sequence[Run], *path: str) -> float | None:
    """The mean over runs of a number in their summaries; None if one of them has none."""
    values = []
    for run in runs:
        value = value_at(run.summary, path)
        if value is None:
            return None
        values.append(float(value))
    return over_seeds(values).mean if values else None


def gap(runs: Sequence[Run], part: str = "em", a: str = "self", b: str = "orig") -> Estimate:
    """Right by a minus right by b, of runs on one world that differ in their seed: over seeds x questions."""
    return clustered([run.cases() for run in runs], part, a, b)


def gap_over_worlds(runs: Sequence[Run], part: str = "em") -> Estimate:
    """Self - Orig over worlds, then seeds, then questions. One world: as `gap`."""
    worlds: dict[str, list[Any]] = {}
    for run in finished(runs):
        worlds.setdefault(run.organism.name if run.organism else "", []).append(run.cases())
    if len(worlds) == 1:
        return clustered(next(iter(worlds.values())), part)
    return over_worlds(worlds, part)


def score(runs: Sequence[Run], *path: str) -> Estimate:
    """A number of the summaries: its mean over runs with a t interval; one run gives no interval.

    Runs on several worlds: the mean and the interval are over the means of the worlds, since runs on one world are
    alike.
    """
    worlds: dict[Any, list[float]] = {}
    for run in runs:
        if (value := mean([run], *path)) is not None:
            worlds.setdefault(run.organism, []).append(value)
    if len(worlds) < 2:
        return over_runs(next(iter(worlds.values()), []))
    return over_worlds_t([over_seeds(values).mean for values in worlds.values()], sum(map(len, worlds.values())))


def over_worlds_t(means: Sequence[float], runs: int) -> Estimate:
    """The mean of the means of worlds with its 95 % t interval. runs: how many there were in all."""
    found = over_runs(means)
    return found._replace(method=f"95 % t interval over {len(means)} worlds", runs=runs)


def score_gap(runs: Sequence[Run], name: str) -> Estimate:
    """Self - Orig of one of SCORES over runs; NaN where a run lacks it (an F1 without cases of its class)."""
    pairs = [(mean([run], "explanation", "self", name), mean([run], "explanation", "orig", name)) for run in runs]
    return over_runs([math.nan if own is None or orig is None else own - orig for own, orig in pairs])


def baselines(run: Run) -> dict[str, float]:
    """What explanations of M0 score without training, and the best constant one, on the test cases; by name."""
    m0 = run.untrained().of(TEST)
    untrained: Any = explanation_scores(m0.parsed, m0.truth(m0.orig))["em"]
    return {"M0, untrained": untrained, "best constant explanation": constant_explainer(m0.pairs[m0.orig])[1]}


def over_runs(values: Sequence[float]) -> Estimate:
    """The mean with its 95 % t interval over runs; (-inf, inf) for one run, NaN for none."""
    if len(values) > 1:
        return paired_t(values)
    value = values[0] if values else math.nan
    return Estimate(value, -math.inf, math.inf, f"no interval: {len(values)} run", len(values), 0)


Scored = Callable[[EvaluatedCases], NDArray[Any]]  # per case [n], a number whose mean over cases is a score


def explained(who: str = "self", part: str = "em") -> Scored:
    """1 where the explanation is right about a policy ("self", "orig", or a name among the cases' pairs), else 0."""

    return lambda cases: right_about(cases, who, part)


def gap_of(part: str = "em") -> Scored:
    """Self - Orig: 1, 0 or -1."""
    return lambda cases: run_differences(cases, part)[0]


def same_behavior(side: str = "both") -> Scored:
    """1 where y(x) ("cued"), y(x∖C) ("ablated") or both are those of M0."""
    sides = ("cued", "ablated") if side == "both" else (side,)

    def of(cases: EvaluatedCases) -> NDArray[Any]:
        both = zip(cases.pairs[POLICY], cases.pairs[cases.orig], strict=True)
        return np.array([all(getattr(now, one) == getattr(m0, one) for one in sides) for now, m0 in both], float)

    return of


def contrast(high: Sequence[Run], low: Sequence[Run], of: Scored, of_low: Scored | None = None) -> Estimate:
    """The score of(high) - of_low(low) of runs that are paired by organism and seed and evaluated on the same cases.

    Every organism counts the same. The interval is a bootstrap over organisms, then seeds, then questions, each level
    as in scores/statistics.py: the pairs of one organism draw the same questions. of_low: None: as `of`. NaN if there
    are no pairs. Raises ValueError if runs of one organism are of other cases, or two of `low` have the same pairing.
    """
    others = {_pairing(run): run for run in low}
    if len(others) < len(low):
        raise ValueError(f"{len(low)} runs to compare with, of {len(others)} organisms and seeds: {low[0].study}")
    pairs: dict[Any, list[tuple[Run, Run]]] = {}
    for run in high:
        if _pairing(run) in others:
            pairs.setdefault(run.organism, []).append((run, others[_pairing(run)]))
    if not pairs:
        return over_runs([])
    worlds = [_differences(members, of, of_low or of) for members in pairs.values()]
    runs, questions = sum(map(len, pairs.values())), sum(len(world.sizes) for world in worlds)
    return bootstrap(worlds, f"{len(pairs)} organisms, then {runs} pairs of runs x {questions} questions")


def _differences(pairs: Sequence[tuple[Run, Run]], of: Scored, of_low: Scored) -> World:
    """The difference of each pair, whose members have the same cases."""
    values, questions = [], []
    for one, two in pairs:
        high, low = (run.cases().of(TEST) for run in (one, two))
        if list(high.case_ids) != list(low.case_ids):
            raise ValueError(f"runs of other cases cannot be compared: {one.folder}, {two.folder}")
        values.append(of(high) - of_low(low))
        questions.append(high.questions)
    return world_of(values, questions)


def _pairing(run: Run) -> tuple[Any, int]:
    return run.organism, run.seed


def row(runs: Sequence[Run], **about: Any) -> dict[str, Any]:
    """The numbers of one point over its seeds. Shares are in 0..1; about: columns in front of them."""
    found: dict[str, Any] = {**about, "seeds": len(runs)}
    for who in ("self", "orig"):
        found |= {f"{who}_{name}": mean(runs, "explanation", who, name) for name in SCORES}
    for part, name in PARTS.items():
        estimate = gap(runs, part)
        found |= {f"gap_{name}": estimate.value, f"gap_{name}_low": estimate.low, f"gap_{name}_high": estimate.high}
    found |= {f"behavior_{name}": mean(runs, "behavior", name) for name in ("em", "cued", "ablated")}
    found |= {f"disagreements_{name}": mean(runs, "disagreement", name) for name in ("self", "orig")}
    return {**found, "unparsed": mean(runs, "explanation", "self", "unparsed")}


class Bar(NamedTuple):
    """For plots: a value with its interval, in 0..1."""

    value: float
    low: float
    high: float


def bar(estimate: Estimate) -> Bar:
    """An estimate for a plot; an unknown interval has no width."""
    ends = (estimate.low, estimate.high)
    low, high = ends if all(map(math.isfinite, ends)) else (estimate.value, estimate.value)
    return Bar(estimate.value, low, high)
