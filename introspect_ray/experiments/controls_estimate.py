"""A number over runs and questions with its interval: what every control is measured with. Pure.

Runs of one training that differ in their seed answer the same cases, and several cases share a question. So both runs
and questions are drawn anew, crossed: one draw of questions holds for all runs of the draw. All numbers of one set of
cases use the same draws, whatever they measure.

Shapes: R runs, N cases, Q questions, K columns, D draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Formula = Callable[[Array], Array]  # column sums [..., R, K] -> the number [...]; it may be NaN where nothing counts
DRAWS = 2000


class Estimate(NamedTuple):
    """A number with its 95 % interval; NaN where no case counts. method says in words what the interval is."""

    value: float
    low: float
    high: float
    method: str
    runs: int
    questions: int


@dataclass(frozen=True)
class Bootstrap:
    """Draws over the questions of N cases. question_N: the question of each case, numbered from 0 without a gap.

    With one run there are no runs to draw, and the interval holds for that run alone.
    """

    question_N: Array
    draws: int = DRAWS
    seed: int = 0

    def estimate(self, columns_RNK: Array, formula: Formula) -> Estimate:
        """The formula of the columns' sums over cases, with a percentile interval.

        columns_RNK: what each case adds to each sum, by run. A draw in which the formula is NaN is left out.
        """
        sums_RQK = self._by_question(columns_RNK)
        runs, questions, columns = sums_RQK.shape
        sums_DRK = (self._counts_DQ @ sums_RQK.swapaxes(0, 1).reshape(questions, -1)).reshape(-1, runs, columns)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(formula(sums_RQK.sum(1)))
            values_D = formula(np.take_along_axis(sums_DRK, self._runs(runs)[:, :, None], 1))
        values_D = values_D[~np.isnan(values_D)]
        low, high = np.percentile(values_D, (2.5, 97.5)) if len(values_D) and not np.isnan(value) else (np.nan, np.nan)
        over = f"{runs} runs x {questions} questions" if runs > 1 else f"{questions} questions of one run"
        method = f"95 % percentile bootstrap over {over}, {self.draws} draws"
        return Estimate(value, float(low), float(high), method, runs, questions)

    def _by_question(self, columns_RNK: Array) -> Array:
        """Sums over the cases of each question, [R, Q, K]."""
        order_N, starts_Q = self._order
        sums: Array = np.add.reduceat(columns_RNK[:, order_N].astype(float), starts_Q, axis=1)
        return sums

    @cached_property
    def _order(self) -> tuple[Array, Array]:
        """The cases sorted by question, and where each question begins."""
        order_N = np.argsort(self.question_N, kind="stable")
        return order_N, np.searchsorted(self.question_N[order_N], np.arange(self.question_N.max() + 1))

    def _runs(self, runs: int) -> Array:
        """Which runs each draw takes, [D, R]."""
        return np.random.default_rng([self.seed, runs]).integers(runs, size=(self.draws, runs))

    @cached_property
    def _counts_DQ(self) -> Array:
        """How often each draw takes each question."""
        questions = len(self._order[1])
        counts = np.random.default_rng(self.seed).multinomial(questions, np.full(questions, 1 / questions), self.draws)
        return counts.astype(np.float32)


def mean_of_runs(numerator: Callable[[Array], Array], denominator: int) -> Formula:
    """Of every run the numerator over the sum of one column, then the mean over runs. numerator: [..., K] -> [...]."""
    return lambda sums: (numerator(sums) / sums[..., denominator]).mean(-1)


def pooled_ratio(numerator: int, denominator: int) -> Formula:
    """One column's sum over all runs over another's: for cases that are few in each run."""
    return lambda sums: sums[..., numerator].sum(-1) / sums[..., denominator].sum(-1)
