"""Contextual calibration: the logprob of a label counts relative to M0's mean logprob of that label.

Small policies answer one letter nearly always. With calibration the answer is the argmax over the labels of logprob -
M0's mean logprob of that label over the training cases, for x and x∖C apart. The offsets are made once, from M0, and
stay fixed for the run; wherever a behaviour is read, they are applied. M0 is the reference policy here, where that is
another one than the policy that training starts from.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from introspect_ray.records import BehaviorPair

Labels = tuple[str, ...]
Offsets = tuple[float, ...]  # one per label, nats
Side = Literal["cued", "ablated"]


@dataclass(frozen=True)
class Calibration:
    """Offsets of each label set, for x and for x∖C. Example: {("A", "B"): {"cued": (-1.8, -0.2), "ablated": ...}}."""

    offsets: Mapping[Labels, Mapping[Side, Offsets]]

    @cached_property
    def identity(self) -> str:
        """16 hex digits over all offsets, for label sets and provenance."""
        content = [(list(labels), sorted(sides.items())) for labels, sides in self._sorted()]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()

    @property
    def as_json(self) -> list[dict[str, Any]]:
        """For a file; `from_json` is the inverse."""
        return [{"labels": list(labels), **{s: list(o) for s, o in sides.items()}} for labels, sides in self._sorted()]

    def answer(self, labels: Labels, side: Side, logprobs: Sequence[float]) -> str:
        """The label with the largest calibrated logprob, the first one of equals. Raises KeyError for labels that M0
        was never asked for."""
        scores = [value - offset for value, offset in zip(logprobs, self.offsets[labels][side], strict=True)]
        return labels[scores.index(max(scores))]

    def pair(self, pair: BehaviorPair, labels: Labels) -> BehaviorPair:
        """The pair with its answers read anew; its logprobs stay raw. Free text, which has none, stays as it is."""
        if not pair.cued_logprobs:
            return pair
        cued = self.answer(labels, "cued", pair.cued_logprobs)
        return replace(pair, cued=cued, ablated=self.answer(labels, "ablated", pair.ablated_logprobs))

    def _sorted(self) -> list[tuple[Labels, Mapping[Side, Offsets]]]:
        return sorted(self.offsets.items(), key=lambda item: item[0])


def from_json(content: Iterable[Mapping[str, Any]]) -> Calibration:
    """The calibration that `as_json` wrote."""
    sides: tuple[Side, Side] = ("cued", "ablated")
    return Calibration({tuple(one["labels"]): {side: tuple(one[side]) for side in sides} for one in content})


def contextual(pairs: Iterable[tuple[BehaviorPair, Labels]]) -> Calibration:
    """The calibration by M0's pairs of the training cases, each with the labels of its case."""
    columns: dict[Labels, dict[Side, list[list[float]]]] = {}
    for pair, labels in pairs:
        if pair.cued_logprobs:
            sides = columns.setdefault(labels, {"cued": [[] for _ in labels], "ablated": [[] for _ in labels]})
            for column, value in zip(sides["cued"], pair.cued_logprobs, strict=True):
                column.append(value)
            for column, value in zip(sides["ablated"], pair.ablated_logprobs, strict=True):
                column.append(value)
    return Calibration(
        {
            labels: {
                side: tuple(math.fsum(values) / len(values) for values in by_label) for side, by_label in sides.items()
            }
            for labels, sides in columns.items()
        }
    )
