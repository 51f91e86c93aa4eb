"""Numbers that several figures share: scores of runs at a point, and gaps with their intervals. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from introspect_ray.experiments.protocol import Run
from introspect_ray.scores.metrics import over_seeds
from introspect_ray.scores.statistics import Estimate, clustered, over_worlds, paired_t

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
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in point.items()) or "as set"


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
        value: Any = run.summary
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
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
    """A number of the summaries over runs: its mean with a t interval; one run gives no interval."""
    return over_runs([float(value) for run in runs if (value := mean([run], *path)) is not None])


def over_runs(values: Sequence[float]) -> Estimate:
    """The mean with its 95 % t interval over runs; (-inf, inf) for one run, NaN for none."""
    if len(values) > 1:
        return paired_t(values)
    value = values[0] if values else math.nan
    return Estimate(value, -math.inf, math.inf, f"no interval: {len(values)} run", len(values), 0)


def difference(high: Sequence[Run], low: Sequence[Run], of: Callable[[Run], float]) -> Estimate:
    """Of runs with the same seed (and world): of(high) - of(low), with a t interval over these pairs."""
    others = {_pairing(run): of(run) for run in low}
    return over_runs([of(run) - others[_pairing(run)] for run in high if _pairing(run) in others])


def _pairing(run: Run) -> tuple[Any, int]:
    return run.organism, run.seed


def gap_of(part: str = "em") -> Callable[[Run], float]:
    """Self - Orig of one run."""
    return lambda run: float(run.summary["gap"][part]["value"])


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
