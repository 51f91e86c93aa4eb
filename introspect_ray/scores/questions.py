"""The questions behind held-out cases: their dev and test split, and what their repetition costs an interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from introspect_ray.rng import bits
from introspect_ray.scores.evaluated_cases import DEV, TEST

FEWEST = 10  # questions that are split; of fewer all are test


def splits(questions: Sequence[str], dev_fraction: float, seed: int) -> list[str]:
    """The split of each case [n], "dev" or "test", by its question: all cases of a question are on one side.

    round(dev_fraction * questions) questions are dev, those whose hash with `seed` is smallest, but never all. A larger
    fraction keeps the dev questions of a smaller one. Fewer than 10 questions are not split: all cases are test.
    """
    distinct = sorted(set(questions), key=lambda question: bits(seed, DEV, question))
    count = min(round(dev_fraction * len(distinct)), len(distinct) - 1) if len(distinct) >= FEWEST else 0
    dev = set(distinct[:count])
    return [DEV if question in dev else TEST for question in questions]


def design_effect(values: Sequence[float], questions: Sequence[str]) -> float:
    """How many cases count as one, because cases of a question come out alike; at least 1.

    The variance of the mean of `values` [n] with questions as clusters, over that with independent cases: with e a
    value less the mean, sum over questions of (sum of e)², over the sum of e² (Kish 1965, §5.4). So n cases are worth
    n / design_effect, and where no question repeats it is 1. Values without any spread say nothing of it: then every
    question counts as one case. Raises ValueError for no values or other lengths.
    """
    if not values or len(values) != len(questions):
        raise ValueError(f"a design effect needs a question per value; got {len(values)} and {len(questions)}")
    mean = math.fsum(values) / len(values)
    sums: dict[str, float] = {}
    for value, question in zip(values, questions, strict=True):
        sums[question] = sums.get(question, 0.0) + value - mean
    spread = math.fsum((value - mean) ** 2 for value in values)
    if len(sums) == len(values):
        return 1.0
    if spread == 0:
        return len(values) / len(sums)
    return max(1.0, math.fsum(total**2 for total in sums.values()) / spread)
