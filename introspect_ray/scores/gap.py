"""Self - Orig, in exact match and in the two parts of an explanation, each with its paired interval. Pure.

The parts can cancel in the exact match: without a regulariser the content of explanations may follow the current policy
while their *changed?* bit stays with M0. So no gap in exact match is reported without its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from introspect_ray.records import Explanation

Right = Callable[[Explanation | None, Explanation], bool]


def exact(said: Explanation | None, truth: Explanation) -> bool:
    """Both parts right (paper eq. 3)."""
    return said == truth


def content_right(said: Explanation | None, truth: Explanation) -> bool:
    """The label that is named is y(x∖C)."""
    return said is not None and said.content == truth.content


def changed_right(said: Explanation | None, truth: Explanation) -> bool:
    """*changed?* is right, whatever label is named."""
    return said is not None and said.changed == truth.changed


PARTS: dict[str, Right] = {"em": exact, "content": content_right, "changed_accuracy": changed_right}


class Gap(NamedTuple):
    """Self - Orig in -1..1 with a 95 % interval."""

    value: float
    low: float
    high: float


def gaps(
    said: Sequence[Explanation | None], self_truth: Sequence[Explanation], orig_truth: Sequence[Explanation]
) -> dict[str, Gap]:
    """The gap of every part (see PARTS) over the same cases in the same order. Raises ValueError for other lengths."""
    return {name: paired_gap(said, self_truth, orig_truth, right) for name, right in PARTS.items()}


def paired_gap(
    said: Sequence[Explanation | None],
    self_truth: Sequence[Explanation],
    orig_truth: Sequence[Explanation],
    right: Right = exact,
    z: float = 1.96,
) -> Gap:
    """Self - Orig with a paired interval over the cases.

    Both scores come from the same explanations, so only cases where one is right and the other wrong count: b right by
    Self only, c by Orig only. Agresti & Min (2005): add 1/2 to each of the four cells, then Wald; it keeps its level
    with few such cases, where a bootstrap gives a zero width. Raises ValueError on no cases or unequal lengths.
    """
    n = len(said)
    if not n or not n == len(self_truth) == len(orig_truth):
        raise ValueError(f"a gap needs the same cases, at least one; got {n}, {len(self_truth)} and {len(orig_truth)}")
    hits = [(right(e, s), right(e, o)) for e, s, o in zip(said, self_truth, orig_truth, strict=True)]
    b, c = hits.count((True, False)), hits.count((False, True))
    total, difference = n + 2, b - c
    half = z * math.sqrt((b + c + 1) - difference**2 / total) / total
    return Gap(difference / n, max(-1.0, difference / total - half), min(1.0, difference / total + half))
