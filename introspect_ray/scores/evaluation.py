"""The held-out evaluation of one policy and the run's summary.json, built and checked here only.

All shares are fractions in 0..1; what does not apply is null; NaN and infinity never appear.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from introspect_ray.config import RunConfig
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

# Leaf kinds; a trailing "?" allows null. "share": 0..1; "count": whole, >= 0; "number": finite; "seconds": >= 0.
_EXPLANATION = {
    "em": "share", "em_ci": "interval", "content": "share",
    "changed_f1": "share?", "unchanged_f1": "share?", "unparsed": "share",
}  # fmt: skip
SCHEMA: dict[str, Any] = {
    "task": "text",
    "policy": "text",
    "method": "text",
    "kl_weight": "number",
    "seed": "count",
    "steps": "count",
    "lag": "count",
    "supervision": {"rule": "text", "agreement": "share?", "mixing_ratio": "share?"},
    "cases": {"train": "count", "test": "count"},
    "explanation": {"orig": _EXPLANATION, "self": _EXPLANATION},
    "behavior": {"em": "share", "cued": "share", "ablated": "share", "off_format": "share"},
    "disagreement": {"fraction": "share", "self": "share?", "orig": "share?", "neither": "share?"},
    "labels": {
        "requested_agreement": "share?", "realised_at_labelling": "share?",
        "realised_at_consumption": "share?", "split_pairs": "count",
    },
    "timing_s": dict.fromkeys(("setup", "rollout", "relabel", "train", "sync", "eval", "total"), "seconds"),
}  # fmt: skip


def evaluate(
    pairs: Sequence[BehaviorPair], m0_pairs: Sequence[BehaviorPair], predicted: Predictions
) -> dict[str, dict[str, Any]]:
    """Blocks "explanation", "behavior", "disagreement" of the summary, on the same cases in the same order.

    pairs: the current policy's behaviour, E(M_t) is read off it (Self); m0_pairs: M0's (Orig);
    predicted: the current policy's parsed explanations. Raises ValueError if the cases differ.
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
    """What details.json keeps beside the summary: the label histograms of M0 and M_t (paper fig. 10a), Self - Orig
    with its paired interval over the cases, and what the collapse check names.

    allowed: the sets of labels that cases allow. One that is never given is in the histograms, with 0.
    """
    answers = list(dict.fromkeys(label for labels in allowed for label in labels))
    gap, low, high = gap_interval(predicted, [p.explanation for p in pairs], [p.explanation for p in m0_pairs])
    return {
        "gap": {"value": gap, "interval": [low, high]},
        "histogram": {"m0": label_histogram(m0_pairs, answers), "policy": label_histogram(pairs, answers)},
        "findings": [str(finding) for finding in collapse(m0_pairs, pairs)],
    }


def summary(
    cfg: RunConfig,
    scores: Mapping[str, Mapping[str, Any]],
    *,
    cases: Mapping[str, int],
    labels: Mapping[str, float | int | None],
    timing: Mapping[str, float],
) -> dict[str, Any]:
    """The content of summary.json, checked. `scores` as from `evaluate`; `timing` in seconds.

    supervision.agreement is null unless the rule is online, mixing_ratio unless it is mixed. Raises
    ValueError if a part misses a key, has one too many, or a value out of its range.
    """
    rule = cfg.supervision
    out = {
        "task": cfg.task.name,
        "policy": cfg.policy,
        "method": cfg.method,
        "kl_weight": cfg.kl_weight,
        "seed": cfg.seed,
        "steps": cfg.steps,
        "lag": cfg.lag,
        "supervision": {
            "rule": rule.rule,
            "agreement": rule.agreement if rule.rule == "online" else None,
            "mixing_ratio": rule.mixing_ratio if rule.rule == "mixed" else None,
        },
        "cases": dict(cases),
        **{block: dict(values) for block, values in scores.items()},
        "labels": dict(labels),
        "timing_s": dict(timing),
    }
    check_summary(out)
    return out


def check_summary(data: Mapping[str, Any]) -> None:
    """Raise ValueError naming every missing or extra key and every value out of its range."""
    problems = _problems(data, SCHEMA, "")
    if problems:
        raise ValueError(f"summary.json is not as documented: {'; '.join(problems)}")


def _problems(value: Any, schema: Any, where: str) -> list[str]:
    if not isinstance(schema, dict):
        return [] if _fits(value, schema) else [f"{where} is {value!r}, not a {schema}"]
    if not isinstance(value, Mapping):
        return [f"{where or 'the summary'} is {value!r}, not an object"]
    dot = f"{where}." if where else ""
    found = [f"{dot}{key} is missing" for key in schema if key not in value]
    found += [f"{dot}{key} is not a known key" for key in value if key not in schema]
    for key in schema.keys() & value.keys():
        found += _problems(value[key], schema[key], f"{dot}{key}")
    return sorted(found)


def _fits(value: Any, kind: str) -> bool:
    if value is None:
        return kind.endswith("?")
    kind = kind.removesuffix("?")
    if kind == "text":
        return isinstance(value, str) and bool(value)
    if kind == "interval":
        return (
            isinstance(value, list)
            and len(value) == 2
            and all(_fits(v, "share") for v in value)
            and value[0] <= value[1]
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    if kind == "count":
        return isinstance(value, int) and value >= 0
    return {"share": 0 <= value <= 1, "number": True, "seconds": value >= 0}[kind]
