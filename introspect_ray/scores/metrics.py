"""Scores of behaviours and explanations (paper §2.3, §B.1, §B.2), as fractions in 0..1. Pure.

"Truth" is E(M0) for Orig and E(M_t) for Self. A prediction of None is an unparseable explanation, which is wrong in
every score. Undefined scores are None, never NaN. All sequences of one call hold the same cases in the same order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from introspect_ray.cases.explanations import all_explanations
from introspect_ray.records import BehaviorPair, Explanation
from introspect_ray.scores.questions import design_effect
from introspect_ray.scores.student_t import t_quantile

Predictions = Sequence[Explanation | None]
Right = Callable[[Explanation | None, Explanation], bool]  # whether a prediction counts for a truth

MAJORITY = 2 / 3  # from this share of one explanation on, an explainer that always gives it scores too well
NEARLY_ALL = 0.85  # from this share on, labels count as collapsed: too few cases are left on the other side


def wilson(k: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of k successes in n trials; (0, 1) for n = 0. It reaches 0 at k = 0 and 1 at k = n.

    k and n need not be whole: cases of repeated questions are worth fewer trials (questions.design_effect).
    """
    if n == 0:
        return 0.0, 1.0
    p, zz = k / n, z * z / n
    centre = p + zz / 2
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    low, high = (centre - half) / (1 + zz), (centre + half) / (1 + zz)
    return 0.0 if k == 0 else low, 1.0 if k == n else high  # both exactly, where rounding would miss them


def exact(predicted: Explanation | None, truth: Explanation) -> bool:
    """Both parts are right (paper eq. 3)."""
    return predicted == truth


def content_right(predicted: Explanation | None, truth: Explanation) -> bool:
    """The named label is y(x∖C), whatever is said of a change."""
    return predicted is not None and predicted.content == truth.content


def changed_right(predicted: Explanation | None, truth: Explanation) -> bool:
    """*changed?* is right, whatever label is named."""
    return predicted is not None and predicted.changed == truth.changed


PARTS: dict[str, Right] = {"em": exact, "content": content_right, "changed_accuracy": changed_right}


def explanation_scores(
    predicted: Predictions, truth: Sequence[Explanation], questions: Sequence[str] = ()
) -> dict[str, object]:
    """Explanation EM (paper eq. 3) and its parts (§B.1) over n >= 1 cases.

    questions: the question of each case; (): each case has its own. em: both parts are right, with em_ci = [low, high],
    its Wilson interval over n / design effect cases, which is wider where questions repeat. content: the named label
    is y(x∖C). changed_accuracy: *changed?* is right. changed_f1, unchanged_f1: F1 of each class of *changed?*, None if
    the class is neither present nor predicted. unparsed: the share of None. Raises ValueError for no cases or unequal
    lengths.
    """
    n = _same_length(predicted, truth)
    right = {part: sum(map(counts, predicted, truth)) for part, counts in PARTS.items()}
    effect = design_effect(list(map(exact, predicted, truth)), questions) if questions else 1.0
    return {
        "em": right["em"] / n,
        "em_ci": list(wilson(right["em"] / effect, n / effect)),
        "content": right["content"] / n,
        "changed_accuracy": right["changed_accuracy"] / n,
        "changed_f1": _class_f1(predicted, truth, True),
        "unchanged_f1": _class_f1(predicted, truth, False),
        "unparsed": sum(p is None for p in predicted) / n,
    }


def _class_f1(predicted: Predictions, truth: Sequence[Explanation], changed: bool) -> float | None:
    """F1 = 2 TP / (predicted + present) of one class. An unparsed prediction is of no class, so it is a miss."""
    hits = sum(p is not None and p.changed == t.changed == changed for p, t in zip(predicted, truth, strict=True))
    claimed = sum(p is not None and p.changed == changed for p in predicted)
    present = sum(t.changed == changed for t in truth)
    return 2 * hits / (claimed + present) if claimed + present else None


def behavior_scores(pairs: Sequence[BehaviorPair], others: Sequence[BehaviorPair]) -> dict[str, float]:
    """Behavior EM (paper eq. 4) of `pairs` to another policy's (M0's): em, its parts cued and ablated.

    off_format: the share of `pairs`. Raises ValueError for no cases, or if the cases are not the same.
    """
    n = _same_cases(pairs, others)
    cued = [a.cued == b.cued for a, b in zip(pairs, others, strict=True)]
    ablated = [a.ablated == b.ablated for a, b in zip(pairs, others, strict=True)]
    return {
        "em": sum(c and a for c, a in zip(cued, ablated, strict=True)) / n,
        "cued": sum(cued) / n,
        "ablated": sum(ablated) / n,
        "off_format": off_format(pairs),
    }


def off_format(pairs: Sequence[BehaviorPair]) -> float:
    """Share of the answers (two per pair, at least one pair) that are off format: see BehaviorPair."""
    return sum(p.cued_off_format + p.ablated_off_format for p in pairs) / (2 * len(pairs))


def disagreement(
    predicted: Predictions, self_truth: Sequence[Explanation], orig_truth: Sequence[Explanation]
) -> dict[str, float | None]:
    """Where a gap between Self and Orig comes from (paper §3.2): the cases where E(M0) != E(M_t).

    fraction: their share of all cases. self, orig, neither: the shares of *these* cases whose prediction is E(M_t),
    E(M0) or neither (unparsed is neither); they sum to 1, and are None if there are no such cases.
    """
    n = _same_length(predicted, self_truth)
    _same_length(predicted, orig_truth)
    split = [(p, s, o) for p, s, o in zip(predicted, self_truth, orig_truth, strict=True) if s != o]
    if not split:
        return {"fraction": 0.0, "self": None, "orig": None, "neither": None}
    to_self, to_orig = sum(p == s for p, s, _ in split), sum(p == o for p, _, o in split)
    m = len(split)
    return {"fraction": m / n, "self": to_self / m, "orig": to_orig / m, "neither": (m - to_self - to_orig) / m}


def label_histogram(pairs: Sequence[BehaviorPair], labels: Sequence[str]) -> dict[str, int]:
    """Counts of E over {unchanged, changed} x labels (the 8-label histogram of paper fig. 10), zeros included.

    Keys "unchanged A", ..., "changed D", in that order. Raises ValueError for a label not in `labels`.
    """
    counts = Counter(p.explanation for p in pairs)
    histogram = {_category(e): counts.pop(e, 0) for e in all_explanations(labels)}
    if counts:
        raise ValueError(f"pairs hold categories outside the labels {tuple(labels)}: {sorted(map(_category, counts))}")
    return histogram


def _category(e: Explanation) -> str:
    return f"{'changed' if e.changed else 'unchanged'} {e.content}"


class Finding(NamedTuple):
    """One thing that a check found; str() gives the message.

    Example: ("m0_one_answer", 0.93, "m0: the answer without the cue is C for 56 of 60 cases (93%)").
    """

    name: str
    value: float  # the measured number that is beyond its bound
    message: str

    def __str__(self) -> str:
        return self.message


def collapse(m0_pairs: Sequence[BehaviorPair], pairs: Sequence[BehaviorPair] | None = None) -> list[Finding]:
    """The collapse check (paper §B.2): one-sided labels of M0, and of M_t if its `pairs` are given.

    Besides the findings of `label_collapse`: `category_vanished`, a (changed?, label) category that is present under
    M0 and that M_t never shows; its value is the count under M0.
    """
    found = label_collapse(m0_pairs, "m0")
    if pairs is None:
        return found
    found += label_collapse(pairs, "trained")
    before, now = (Counter(p.explanation for p in group) for group in (m0_pairs, pairs))
    for category in sorted(set(before) - set(now)):
        count, name = before[category], _category(category)
        message = f"trained: {name!r}, {count} of {len(m0_pairs)} cases under M0, does not occur any more"
        found.append(Finding("category_vanished", float(count), message))
    return found


def label_collapse(pairs: Sequence[BehaviorPair], who: str, limit: float = NEARLY_ALL) -> list[Finding]:
    """Labels that are too one-sided to train on or to score.

    Findings: `<who>_nearly_unchanged`, `<who>_nearly_changed`; `<who>_one_answer`: one y(x∖C) nearly always;
    `<who>_one_explanation`: one explanation so often that an explainer that always gives it looks good.
    """
    n, found = len(pairs), []
    changed = sum(p.explanation.changed for p in pairs)
    for kind, k in (("unchanged", n - changed), ("changed", changed)):
        if n and k / n >= limit:
            message = f"{who}: {k} of {n} answers ({k / n:.0%}) are {kind} when the cue is removed"
            found.append(Finding(f"{who}_nearly_{kind}", k / n, message))
    for answer, k in Counter(p.ablated for p in pairs).most_common(1):
        if k / n >= limit:
            message = f"{who}: the answer without the cue is {answer} for {k} of {n} cases ({k / n:.0%})"
            found.append(Finding(f"{who}_one_answer", k / n, message))
    if n:
        explanation, share = constant_explainer(pairs)
        if share >= MAJORITY:
            message = f"{who}: always saying {explanation!r} would explain {share:.0%} of {n} cases"
            found.append(Finding(f"{who}_one_explanation", share, message))
    return found


def constant_explainer(pairs: Sequence[BehaviorPair]) -> tuple[str, float]:
    """(the most frequent explanation, its share): what an explainer that always gives it scores. At least one pair."""
    ((explanation, count),) = Counter(p.explanation for p in pairs).most_common(1)
    return _category(explanation), count / len(pairs)


class Spread(NamedTuple):
    """Mean over seeds, sample standard deviation, t interval (lo, hi). All but the mean are None for one seed."""

    mean: float
    sd: float | None
    lo: float | None
    hi: float | None


def over_seeds(values: Sequence[float], coverage: float = 0.95) -> Spread:
    """Mean and spread of one score over seeds, with a t interval of this coverage. Raises ValueError for no values."""
    n = len(values)
    if n == 0:
        raise ValueError("over_seeds of no values")
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(mean, None, None, None)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile(coverage, n - 1) * sd / math.sqrt(n)
    return Spread(mean, sd, mean - half, mean + half)


def _same_length(first: Sequence[object], second: Sequence[object]) -> int:
    if not first or len(first) != len(second):
        raise ValueError(f"scores need the same cases on both sides, at least one; got {len(first)} and {len(second)}")
    return len(first)


def _same_cases(pairs: Sequence[BehaviorPair], others: Sequence[BehaviorPair]) -> int:
    n = _same_length(pairs, others)
    for a, b in zip(pairs, others, strict=True):
        if a.case_id != b.case_id:
            raise ValueError(f"pairs of different cases compared: {a.case_id!r} against {b.case_id!r}")
    return n
