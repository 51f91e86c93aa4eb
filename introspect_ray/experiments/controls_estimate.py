"""A number over runs and questions with its interval: what every control is measured with. Pure.

As in scores/statistics.py, whole questions and whole runs are drawn anew, n - 1 of n of each, and one draw of questions
holds for all runs. Here the number may be any function of sums over cases, which a share of some cases or an
expectation from frequencies needs. All numbers of one set of cases use the same draws, whatever they measure.

Shapes: R runs, N cases, Q questions, K columns, D draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from introspect_ray.scores.statistics import DRAWS, Estimate, shares

Array = np.ndarray
# (sums of columns [..., R, K], weights of the runs [..., R]) -> the number [...]; NaN where no case counts
Formula = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Bootstrap:
    """Draws over the questions of N cases. question_N: the question of each case, numbered from 0 without a gap.

    With one run there are no runs to draw: the interval says nothing about other seeds.
    """

    question_N: Array
    seed: int = 0

    def estimate(self, columns_RNK: Array, formula: Formula) -> Estimate:
        """The formula of the columns' sums over cases, with a percentile interval; NaN if the formula is.

        columns_RNK: what each case adds to each sum, by run. A draw in which the formula is NaN is left out. One
        question gives no interval, so [-1, 1].
        """
        sums_RQK = self._by_question(columns_RNK)
        runs, questions, columns = sums_RQK.shape
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(formula(sums_RQK.sum(1), np.full(runs, 1 / runs)))
            if questions == 1:
                return Estimate(value, -1.0, 1.0, "no interval: one question alone", runs, questions)
            drawn = self._questions_DQ @ sums_RQK.swapaxes(0, 1).reshape(questions, -1)
            values_D = formula(drawn.reshape(-1, runs, columns), self._runs(runs))
        values_D = values_D[~np.isnan(values_D)]
        low, high = np.quantile(values_D, (0.025, 0.975)) if len(values_D) and not np.isnan(value) else (np.nan, np.nan)
        over = f"{questions} questions" if runs == 1 else f"{runs} seeds x {questions} questions"
        return Estimate(value, float(low), float(high), f"95 % bootstrap interval over {over}", runs, questions)

    def _by_question(self, columns_RNK: Array) -> Array:
        """Sums over the cases of each question, [R, Q, K]."""
        order_N = np.argsort(self.question_N, kind="stable")
        starts_Q = np.searchsorted(self.question_N[order_N], np.arange(self.question_N.max() + 1))
        sums: Array = np.add.reduceat(columns_RNK[:, order_N].astype(float), starts_Q, axis=1)
        return sums

    @cached_property
    def _questions_DQ(self) -> Array:
        return shares(np.random.default_rng(self.seed), int(self.question_N.max()) + 1, DRAWS)

    def _runs(self, runs: int) -> Array:
        """The weight of each run in each draw, [D, R]."""
        return shares(np.random.default_rng([self.seed, runs]), runs, DRAWS)


def mean_of_runs(top: Callable[[Array], Array], count: int) -> Formula:
    """The mean over runs of top(sums) / the sum of column `count`. top: sums [..., K] -> [...]."""
    return lambda sums, weights: (weights * (top(sums) / sums[..., count])).sum(-1)


def pooled_ratio(top: int, count: int) -> Formula:
    """One column's sum over all runs over that of another: for cases that are few in each run."""
    return lambda sums, weights: (weights * sums[..., top]).sum(-1) / (weights * sums[..., count]).sum(-1)
