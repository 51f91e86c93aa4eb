"""The held-out evaluation of one policy: three blocks of summary.json, and what details.json adds to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from introspect_ray.records import BehaviorPair
from introspect_ray.scores.metrics import (
    Predictions,
    behavior_scores,
    collapse,
    disagreement,
    explanation_scores,
    gap_interval,
    label_histogram,
)


def evaluate(
    pairs: Sequence[BehaviorPair], m0_pairs: Sequence[BehaviorPair], predicted: Predictions
) -> dict[str, dict[str, Any]]:
    """The blocks "explanation", "behavior" and "disagreement" of summary.json (see `summary.Summary`).

    pairs: the current policy's behaviour, which gives E(M_t) (Self). m0_pairs: that of M0 (Orig). predicted: the
    current policy's parsed explanations. All three hold the same cases in the same order, at least one. Raises
    ValueError if they do not.
    """
    behavior = behavior_scores(pairs, m0_pairs)  # first: it checks that the cases are the same
    truth, origin = [p.explanation for p in pairs], [p.explanation for p in m0_pairs]
    return {
        "explanation": {
            "orig": explanation_scores(predicted, origin),
            "self": explanation_scores(predicted, truth),
        },
        "behavior": behavior,
        "disagreement": disagreement(predicted, truth, origin),
    }


def details(
    m0_pairs: Sequence[BehaviorPair],
    pairs: Sequence[BehaviorPair],
    predicted: Predictions,
    allowed: Iterable[Sequence[str]],
) -> dict[str, Any]:
    """The blocks "gap", "histogram" and "findings" of details.json.

    gap: Self - Orig with its paired interval over the cases. histogram: counts of E(M0) and E(M_t) (paper fig. 10a).
    findings: messages of the collapse check. allowed: the label sets of the cases; a label that is never given still
    has a 0 in the histograms.
    """
    answers = list(dict.fromkeys(label for labels in allowed for label in labels))
    gap, low, high = gap_interval(predicted, [p.explanation for p in pairs], [p.explanation for p in m0_pairs])
    return {
        "gap": {"value": gap, "interval": [low, high]},
        "histogram": {"m0": label_histogram(m0_pairs, answers), "policy": label_histogram(pairs, answers)},
        "findings": [str(finding) for finding in collapse(m0_pairs, pairs)],
    }
