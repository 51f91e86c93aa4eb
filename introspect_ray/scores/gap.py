"""Self - Orig, in exact match and in the two parts of an explanation, each with its paired interval. Pure.

The parts can cancel in the exact match: without a regulariser the content of explanations may follow the current policy
while their *changed?* stays with M0. So no gap in exact match is reported without its parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from introspect_ray.records import Explanation
from introspect_ray.scores.metrics import PARTS, Predictions, Right, exact
from introspect_ray.scores.questions import design_effect


class Gap(NamedTuple):
    """Self - Orig in -1..1 with a 95 % interval."""

    value: float
    low: float
    high: float


def gaps(
    predicted: Predictions,
    self_truth: Sequence[Explanation],
    orig_truth: Sequence[Explanation],
    questions: Sequence[str] = (),
) -> dict[str, Gap]:
    """The gap of each of PARTS over the same cases in the same order. Raises ValueError as `paired_gap` does."""
    return {name: paired_gap(predicted, self_truth, orig_truth, right, questions) for name, right in PARTS.items()}


def paired_gap(
    predicted: Predictions,
    self_truth: Sequence[Explanation],
    orig_truth: Sequence[Explanation],
    right: Right = exact,
    questions: Sequence[str] = (),
    z: float = 1.96,
) -> Gap:
    """Self - Orig with a 95 % interval paired over cases and clustered by question.

    right: when a prediction counts for a truth. questions: the question of each case; (): each case has its own.

    Both scores come from the same predictions, so only cases that count for one of them matter: b right by Self only, c
    by Orig only. The interval is that of Agresti and Min (2005): add 1/2 to each of the four cells, then Wald. It keeps
    its level with few such cases, where a bootstrap would have no width. Cases of one question are no independent
    cases: the cells are divided by the design effect of the differences first, as Dean and Pagano (2015) do for a
    proportion. Raises ValueError for no cases or unequal lengths.
    """
    n = len(predicted)
    if not n or not n == len(self_truth) == len(orig_truth):
        raise ValueError(f"a gap needs the same cases, at least one; got {n}, {len(self_truth)} and {len(orig_truth)}")
    hits = [(right(p, s), right(p, o)) for p, s, o in zip(predicted, self_truth, orig_truth, strict=True)]
    differences = [own - orig for own, orig in hits]
    effect = design_effect(differences, questions) if questions else 1.0
    b, c = differences.count(1) / effect, differences.count(-1) / effect
    total, difference = n / effect + 2, b - c
    half = z * math.sqrt((b + c + 1) - difference**2 / total) / total
    return Gap(sum(differences) / n, max(-1.0, difference / total - half), min(1.0, difference / total + half))
