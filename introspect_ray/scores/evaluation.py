"""The held-out evaluation of one policy: the metric blocks of summary.json and details.json from its cases. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from introspect_ray.records import Explanation
from introspect_ray.scores.evaluated_cases import AGAINST, DEV, FREE, M0, POLICY, SECOND, TEST, EvaluatedCases
from introspect_ray.scores.gap import gaps, paired_gap
from introspect_ray.scores.metrics import (
    behavior_scores,
    collapse,
    disagreement,
    explanation_scores,
    label_histogram,
)


def evaluate(cases: EvaluatedCases) -> dict[str, Any]:
    """The blocks "explanation", "behavior", "disagreement", "gap", "groups", "sources" and "dev" (see
    `summary.Summary`): all but "dev" are of the cases of the test split.

    Self is the policy "policy", Orig is "m0", or "reference" where there is one. groups: {} where no case has a group.
    sources: None without a mask (`from_second`). dev: None where no case is of the dev split. Raises ValueError for no
    test cases.
    """
    test, dev = cases.of(TEST), cases.of(DEV)
    return {
        **_explanation_and_behavior(test),
        "disagreement": disagreement(test.parsed, test.truth(POLICY), test.truth(test.orig)),
        "gap": _gap(test),
        "groups": {
            group: {**_explanation_and_behavior(members), "cases": len(members)}
            for group, members in test.by_group().items()
        },
        "sources": None if test.from_second is None else mixture_scores(test, test.from_second),
        "dev": {"cases": len(dev), "questions": len(set(dev.questions)), "gap": _gap(dev)} if len(dev) else None,
    }


def _gap(cases: EvaluatedCases) -> dict[str, Any]:
    found = gaps(cases.parsed, cases.truth(POLICY), cases.truth(cases.orig), cases.questions)
    return {part: {"value": gap.value, "ci": [gap.low, gap.high]} for part, gap in found.items()}


def _explanation_and_behavior(cases: EvaluatedCases) -> dict[str, Any]:
    return {
        "explanation": {
            "orig": _scores(cases, cases.truth(cases.orig)),
            "self": _scores(cases, cases.truth(POLICY)),
        },
        "behavior": behavior_scores(cases.pairs[POLICY], cases.pairs[cases.orig]),
    }


def _scores(cases: EvaluatedCases, truth: Sequence[Explanation]) -> dict[str, object]:
    """Whether a policy keeps to the form of an explanation is known of free generation alone."""
    scores = explanation_scores(cases.parsed, truth, cases.questions)
    return scores if cases.decode == FREE else {**scores, "unparsed": None}


def mixture_scores(cases: EvaluatedCases, mask: Sequence[bool]) -> dict[str, Any]:
    """The block "sources" of a mixed run (paper fig. 6): explanations against Self and every source, behaviour to both.

    mask: per case, whether the mixture takes the second policy's explanation (else M0's). "self", "m0", "second" and
    "mixture" are explanation scores; "behavior" holds the behaviour scores to "m0" and to "second". With a reference
    policy "m0" is that one, as everywhere in a run's formulas. Raises ValueError
    for no cases, other lengths, or cases without the pairs of the second policy.
    """
    if SECOND not in cases.pairs:
        raise ValueError(f"a mixture needs the pairs of {SECOND!r}; the cases have those of {sorted(cases.pairs)}")
    truths = {"self": cases.truth(POLICY), M0: cases.truth(cases.orig), SECOND: cases.truth(SECOND)}
    truths["mixture"] = [
        second if from_second else orig
        for second, orig, from_second in zip(truths[SECOND], truths[M0], mask, strict=True)
    ]
    pairs, others = cases.pairs[POLICY], {M0: cases.pairs[cases.orig], SECOND: cases.pairs[SECOND]}
    return {
        **{source: _scores(cases, truth) for source, truth in truths.items()},
        "behavior": {name: behavior_scores(pairs, other) for name, other in others.items()},
    }


def against_scores(cases: EvaluatedCases) -> dict[str, Any]:
    """Explanation scores against the behaviour of each further policy, by its name (A→B), on the test split."""
    test = cases.of(TEST)
    return {
        name.removeprefix(AGAINST): _scores(test, test.truth(name)) for name in test.pairs if name.startswith(AGAINST)
    }


def details(cases: EvaluatedCases) -> dict[str, Any]:
    """The blocks "gap", "histogram" and "findings" of details.json, over the test split.

    gap: Self - Orig in exact match with its paired interval. histogram: counts of E(M0) and E(M_t) (paper fig. 10a);
    an allowed label that is never given still has a 0. findings: messages of the collapse check. Raises ValueError
    for no cases, or for an answer that is no allowed label.
    """
    cases = cases.of(TEST)
    answers = list(dict.fromkeys(label for labels in cases.labels for label in labels))
    m0_pairs, pairs = cases.pairs[cases.orig], cases.pairs[POLICY]
    gap = paired_gap(cases.parsed, cases.truth(POLICY), cases.truth(cases.orig), questions=cases.questions)
    return {
        "gap": {"value": gap.value, "interval": [gap.low, gap.high]},
        "histogram": {"m0": label_histogram(m0_pairs, answers), "policy": label_histogram(pairs, answers)},
        "findings": [str(finding) for finding in collapse(m0_pairs, pairs)],
    }
