"""Controls of a run by itself: labels shuffled over cases, the constant explainer, offsets refitted. Pure.

A policy that gives one answer more and more often, and says so, gains Self without knowing anything of a case. These
controls take away what the frequencies alone would give.
Shapes: R runs, N cases, S strata, X different explanations, K columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from introspect_ray.experiments.controls_cases import Coded, Subject
from introspect_ray.experiments.controls_estimate import Array, Bootstrap, mean_of_runs
from introspect_ray.labels.calibration import contextual
from introspect_ray.records import BehaviorPair
from introspect_ray.rng import bits
from introspect_ray.scores.evaluated_cases import POLICY, EvaluatedCases
from introspect_ray.scores.statistics import Estimate

Numbers = dict[str, Estimate]
FEWEST_PAIRS = 20  # of one label set in each half of the questions: offsets from fewer are noise


def shuffled(coded: Coded, bootstrap: Bootstrap, within_cue: bool = False) -> Numbers:
    """Self and Orig against labels that are permuted over the cases, and the gap beyond that.

    The expectation over all permutations follows from the frequencies: the sum over explanations x of (share in which x
    is said) times (share in which x is true). within_cue: labels are permuted among cases of one stratum only, so that
    what the cue gives away counts as known too. The gap beyond marginals is (Self - Self shuffled) - (Orig - Orig
    shuffled).
    """
    strata_N = coded.stratum_N if within_cue else np.zeros_like(coded.stratum_N)
    cells = (int(strata_N.max()) + 1, int(max(coded.own_RN.max(), coded.orig_RN.max(), coded.said_RN.max())) + 1)
    flat = cells[0] * cells[1]

    def one_hot(codes_RN: Array) -> Array:
        """[R, N, S * X]; all 0 for an explanation that was not parsed."""
        place_RN = np.where(codes_RN < 0, flat, strata_N * cells[1] + codes_RN)
        return np.eye(flat + 1, dtype=bool)[place_RN][..., :flat]

    hits = [coded.said_RN == coded.own_RN, coded.said_RN == coded.orig_RN]
    in_stratum = np.broadcast_to(np.eye(cells[0], dtype=bool)[strata_N], (*coded.said_RN.shape, cells[0]))
    tables = [one_hot(codes) for codes in (coded.said_RN, coded.own_RN, coded.orig_RN)]
    columns_RNK = np.concatenate([np.stack([*hits, np.ones_like(hits[0])], -1), in_stratum, *tables], -1)
    starts = np.cumsum([3, cells[0], flat, flat])

    def chance(sums: Array, truth: int) -> Array:
        """Expected hits [...] after a permutation. truth: 2 for the run's own labels, 3 for those of M0."""
        count, said, true = (sums[..., starts[i] : starts[i] + n] for i, n in ((0, cells[0]), (1, flat), (truth, flat)))
        per_stratum = (said * true).reshape(*said.shape[:-1], *cells).sum(-1)
        return np.divide(per_stratum, count, out=np.zeros_like(per_stratum), where=count > 0).sum(-1)

    own, orig = (lambda sums: chance(sums, 2)), (lambda sums: chance(sums, 3))
    wanted = {
        "self shuffled": own,
        "orig shuffled": orig,
        "gap shuffled": lambda sums: own(sums) - orig(sums),
        "gap beyond marginals": lambda sums: sums[..., 0] - sums[..., 1] - own(sums) + orig(sums),
    }
    return {name: bootstrap.estimate(columns_RNK, mean_of_runs(top, 2)) for name, top in wanted.items()}


def constants(coded: Coded) -> dict[str, list[int]]:
    """Which explanation a constant explainer would give, per run: the most frequent one of M0, the most frequent one of
    the run, and the one whose share grew most from M0 to the run, which has the largest gap a constant can have.

    Of equals the one with the lowest number.
    """
    found: dict[str, list[int]] = {"M0's most frequent": [], "the run's most frequent": [], "largest gap": []}
    for own_N, orig_N in zip(coded.own_RN, coded.orig_RN, strict=True):
        size = int(max(own_N.max(), orig_N.max())) + 1
        own_X, orig_X = np.bincount(own_N, minlength=size), np.bincount(orig_N, minlength=size)
        for name, score_X in zip(found, (orig_X, own_X, own_X - orig_X), strict=True):
            found[name].append(int(score_X.argmax()))
    return found


def constant_scores(coded: Coded, constant_R: Sequence[int], bootstrap: Bootstrap) -> Numbers:
    """What always saying one explanation (that of each run) would score, and the run's gap less the constant's.

    The constant was chosen on the same cases; the interval takes it as given.
    """
    always_R1 = np.array(constant_R)[:, None]
    hits = [coded.said_RN == coded.own_RN, coded.said_RN == coded.orig_RN]
    hits += [coded.own_RN == always_R1, coded.orig_RN == always_R1]
    columns_RNK = np.stack([*hits, np.ones_like(hits[0])], -1)
    wanted = {
        "self": lambda sums: sums[..., 2],
        "orig": lambda sums: sums[..., 3],
        "gap": lambda sums: sums[..., 2] - sums[..., 3],
        "gap of the run - constant's": lambda sums: sums[..., 0] - sums[..., 1] - sums[..., 2] + sums[..., 3],
    }
    return {name: bootstrap.estimate(columns_RNK, mean_of_runs(top, 4)) for name, top in wanted.items()}


def half(question: str) -> int:
    """0 or 1: the half of the questions that a question is in, whatever else is evaluated."""
    return bits("controls", question) % 2


def refitted(subject: Subject, m0_too: bool = False) -> Subject | None:
    """The run read by offsets of its own: its answers are the argmax of logprob - the run's mean logprob.

    The offsets are cross-fitted: cases of one half of the questions are read by the means over the other half, of all
    held-out cases (dev and test). What was said stays. M0 keeps the reading that its labels were made with; with m0_too
    it is read anew in the same way, so that offsets from few questions blur both truths alike. None if a label set has
    fewer than FEWEST_PAIRS pairs in a half.
    """
    cases = subject.held_out
    pairs = dict(cases.pairs)
    for policy in (POLICY, cases.orig) if m0_too else (POLICY,):
        read = _cross_fitted(cases, policy)
        if read is None:
            return None
        pairs[policy] = read
    return replace(subject, held_out=replace(cases, pairs=pairs))


def _cross_fitted(cases: EvaluatedCases, policy: str) -> list[BehaviorPair] | None:
    """The pairs of a policy, each half of the questions read by the means over the other half."""
    every = [(pair, tuple(labels)) for pair, labels in zip(cases.pairs[policy], cases.labels, strict=True)]
    halves = [half(question) for question in cases.questions]
    fits = []
    for side in (0, 1):
        others = [one for one, its in zip(every, halves, strict=True) if its != side]
        counts = Counter(labels for pair, labels in others if pair.cued_logprobs)
        if any(counts[labels] < FEWEST_PAIRS for pair, labels in every if pair.cued_logprobs):
            return None
        fits.append(contextual(others))
    return [fits[its].pair(pair, labels) for (pair, labels), its in zip(every, halves, strict=True)]


def answer_shares(cases: EvaluatedCases, policy: str) -> dict[str, dict[str, float]]:
    """The share of each answer on x ("cued") and on x∖C ("ablated"), most frequent first."""
    return {
        side: {label: count / len(cases) for label, count in Counter(answers).most_common()}
        for side, answers in (
            ("cued", [pair.cued for pair in cases.pairs[policy]]),
            ("ablated", [pair.ablated for pair in cases.pairs[policy]]),
        )
    }
