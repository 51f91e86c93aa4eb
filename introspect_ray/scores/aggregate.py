"""The block "aggregate" of sweep.json: what runs that differ in their seed alone say together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.metrics import PARTS
from introspect_ray.scores.statistics import Estimate, clustered, paired_t


def aggregate(
    rows: Sequence[Mapping[str, Any]], cases: Sequence[EvaluatedCases], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per point of a sweep, in the order in which points first appear.

    rows: summaries of finished runs with the values of `keys`; cases: the evaluated cases of each. A row of the result
    holds the values of `keys`; "seeds"; "questions" (of the test split); "gap": Self - Orig by part ("em", "content",
    "changed_accuracy") over seeds and questions (statistics.clustered) as value, ci = [low, high] and method; and
    "paired_t": likewise over seeds (statistics.paired_t), null for one seed. Raises ValueError as `clustered` does.
    """
    points: dict[tuple[Any, ...], list[int]] = {}
    for at, row in enumerate(rows):
        points.setdefault(tuple(row[key] for key in keys), []).append(at)
    return [
        {**dict(zip(keys, values, strict=True)), **_point([rows[at] for at in members], [cases[at] for at in members])}
        for values, members in points.items()
    ]


def _point(rows: Sequence[Mapping[str, Any]], cases: Sequence[EvaluatedCases]) -> dict[str, Any]:
    gaps = {part: clustered(cases, part) for part in PARTS}
    by_seed = {part: [row["gap"][part]["value"] for row in rows] for part in PARTS}
    return {
        "seeds": [row["seed"] for row in rows],
        "questions": gaps["em"].questions,
        "gap": {part: shown(gap) for part, gap in gaps.items()},
        "paired_t": {part: shown(paired_t(values)) if len(values) > 1 else None for part, values in by_seed.items()},
    }


def gaps_by_value(
    summaries: Sequence[Mapping[str, Any]],
    swept: Sequence[float],
    key: str,
    points: Sequence[Mapping[str, Any]] | None = None,
) -> dict[float, dict[str, dict[str, Any]]]:
    """By swept value, ascending, and part: Self - Orig as value, ci (None: not known) and method.

    points: the rows of `aggregate` over `key` alone. Without them the interval is that of the summary for one run, and
    the paired t for several.
    """
    if points is not None:
        return {float(point[key]): dict(point["gap"]) for point in sorted(points, key=lambda point: float(point[key]))}
    groups: dict[float, list[Mapping[str, Any]]] = {}
    for x, summary in sorted(zip(swept, summaries, strict=True), key=lambda pair: pair[0]):
        groups.setdefault(x, []).append(summary)
    return {x: {part: _of_summaries(group, part) for part in PARTS} for x, group in groups.items()}


ONE_RUN = "95 % interval over the cases of the run, clustered by question"


def _of_summaries(summaries: Sequence[Mapping[str, Any]], part: str) -> dict[str, Any]:
    if len(summaries) == 1 and "gap" in summaries[0]:
        return {**summaries[0]["gap"][part], "method": ONE_RUN}
    own, orig = ([summary["explanation"][side].get(part) for summary in summaries] for side in ("self", "orig"))
    differences = [a - b for a, b in zip(own, orig, strict=True) if a is not None and b is not None]
    if len(differences) < len(summaries):  # a summary of an earlier version lacks changed_accuracy
        return {"value": None, "ci": None, "method": ""}
    if len(differences) == 1:
        return {"value": differences[0], "ci": None, "method": ""}
    return shown(paired_t(differences))


def shown(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON."""
    return {"value": estimate.value, "ci": [estimate.low, estimate.high], "method": estimate.method}
