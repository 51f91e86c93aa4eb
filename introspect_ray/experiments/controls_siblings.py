"""Controls that compare a run with other runs: siblings, the drift swap, the same distance, second generation. Pure.

A sibling of A is a run of the same training with another seed: it knows all that training teaches, but it is not A.
Shapes: R runs, N cases, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from introspect_ray.experiments.controls_cases import Coded
from introspect_ray.experiments.controls_estimate import Array, Bootstrap, mean_of_runs, pooled_ratio
from introspect_ray.scores.statistics import Estimate

Numbers = dict[str, Estimate]


def matrix(coded: Coded) -> list[list[float]]:
    """A→B: the share of cases in which A's explanation (row) is true of B (column); the last column is M0.

    The diagonal is Self.
    """
    return [
        [*(float((said_N == own_N).mean()) for own_N in coded.own_RN), float((said_N == orig_N).mean())]
        for said_N, orig_N in zip(coded.said_RN, coded.orig_RN, strict=True)
    ]


def sibling_scores(coded: Coded, bootstrap: Bootstrap) -> Numbers:
    """Self, Orig and, with two runs or more, the mean over siblings, with their differences; means over runs."""
    hits = [coded.said_RN == coded.own_RN, coded.said_RN == coded.orig_RN]
    more = len(coded.said_RN) > 1
    if more:
        hits.append(np.stack([_toward(coded, a).mean(0) for a in range(len(coded.said_RN))]))
    own, orig, sibling = 0, 1, 2
    wanted: dict[str, tuple[int, ...]] = {"self": (own,), "orig": (orig,), "self - orig": (own, orig)}
    if more:
        wanted |= {"sibling": (sibling,), "self - sibling": (own, sibling), "orig - sibling": (orig, sibling)}
    return _numbers(bootstrap, _hits(*hits), wanted)


def _toward(coded: Coded, a: int) -> Array:
    """Whether A's explanation is true of each sibling, [R - 1, N]."""
    return np.delete(coded.own_RN, a, 0) == coded.said_RN[a]


def drift_swap(coded: Coded, bootstrap: Bootstrap) -> tuple[Numbers, int]:
    """Where one of two siblings left M0, does A state what is new of itself, and not what is new of the other?

    "own": of the cases in which E(A) left E(M0) and E(B) did not, the share in which A states E(A). "sibling's": of
    those in which E(B) left and E(A) did not, the share in which A states E(B). Summed over all ordered pairs of
    siblings; also returns of how many cases, the same for both. Needs two runs.
    """
    rows = []
    for a, (said_N, own_N, orig_N) in enumerate(zip(coded.said_RN, coded.own_RN, coded.orig_RN, strict=True)):
        others_BN = np.delete(coded.own_RN, a, 0)
        only_own_BN = (own_N != orig_N) & (others_BN == orig_N)
        only_other_BN = (own_N == orig_N) & (others_BN != orig_N)
        told = (only_own_BN & (said_N == own_N), only_own_BN, only_other_BN & (said_N == others_BN), only_other_BN)
        rows.append(np.stack([one.sum(0) for one in told], -1))
    columns_RNK = np.stack(rows)
    own, other = pooled_ratio(0, 1), pooled_ratio(2, 3)
    formulas = {"own": own, "sibling's": other, "own - sibling's": lambda *drawn: own(*drawn) - other(*drawn)}
    numbers = {name: bootstrap.estimate(columns_RNK, formula) for name, formula in formulas.items()}
    return numbers, int(columns_RNK[..., 1].sum())


def nearest(distances: Sequence[float], a: int, allowed: Sequence[int]) -> int | None:
    """Which of the `allowed` runs has the Behaviour EM nearest to that of run a; the first of equals, None of none."""
    others = [b for b in allowed if b != a]
    return min(others, key=lambda b: abs(distances[b] - distances[a]), default=None)


def same_distance(coded: Coded, others_RN: Array, bootstrap: Bootstrap) -> Numbers:
    """A→B of each run, and Self less it, for one other policy B at (about) the same distance to M0; means over runs.

    others_RN: E(B) in the numbers of `coded`.
    """
    columns_RNK = _hits(coded.said_RN == coded.own_RN, coded.said_RN == others_RN)
    return _numbers(bootstrap, columns_RNK, {"A→B": (1,), "self - A→B": (0, 1)})


def second_generation(pupils: Coded, teachers: Coded, bootstrap: Bootstrap) -> Numbers:
    """Runs that were trained from M0 on the behaviour and explanations of M_reg: M[B(M_reg), E(M_reg)], paper fig. 10b.

    Run r of `pupils` explains run r of `teachers`. Both have the numbers of one coding.
    """
    columns_RNK = _hits(
        pupils.said_RN == teachers.own_RN,
        teachers.said_RN == teachers.own_RN,
        teachers.said_RN == teachers.orig_RN,
    )
    wanted = {
        "second generation explains M_reg": (0,),
        "M_reg explains itself": (1,),
        "M_reg explains M0": (2,),
        "M_reg explains itself - second generation": (1, 0),
        "second generation - M_reg explains M0": (0, 2),
    }
    return _numbers(bootstrap, columns_RNK, wanted)


def _hits(*hits_RN: Array) -> Array:
    """Columns: what is right, and a last one that counts the cases."""
    return np.stack([*hits_RN, np.ones_like(hits_RN[0])], -1)


def _numbers(bootstrap: Bootstrap, columns_RNK: Array, wanted: Mapping[str, tuple[int, ...]]) -> Numbers:
    """By name the mean over runs of one column's share of the cases, or of the first less the second."""

    def top(names: tuple[int, ...]) -> Callable[[Array], Array]:
        return lambda sums: sums[..., names[0]] - (sums[..., names[1]] if len(names) > 1 else 0)

    last = columns_RNK.shape[-1] - 1
    return {name: bootstrap.estimate(columns_RNK, mean_of_runs(top(names), last)) for name, names in wanted.items()}
