"""Exact tails of the binomial distribution: which shares of n random draws are too far from their probability. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left


def binomial_tail(k: int, n: int, p: float) -> float:
    """The tail of Binomial(n, p) that begins at k, 0 <= k <= n: P(K <= k) for k up to the mean n * p, else P(K >= k).

    The sum runs outwards from k until its terms vanish, so n may be large.
    """
    if p in (0.0, 1.0):
        return _probability(k, n, p)
    if k > n * p:
        k, p = n - k, 1 - p
    term = total = _probability(k, n, p)
    while k > 0 and term > total * 1e-17:
        term *= k / (n - k + 1) * (1 - p) / p
        total += term
        k -= 1
    return total


def binomial_interval(p: float, n: int, tail: float = 1e-5) -> tuple[float, float]:
    """The smallest and the largest share k/n whose `binomial_tail` is at least `tail`, which is below 0.5.

    Exact tails also hold for p near 1, where the normal interval does not.
    """
    below = bisect_left(range(math.floor(n * p) + 1), tail, key=lambda k: binomial_tail(k, n, p))
    above = bisect_left(range(n - math.ceil(n * p) + 1), tail, key=lambda k: binomial_tail(n - k, n, p))
    return below / n, (n - above) / n


def _probability(k: int, n: int, p: float) -> float:
    """P(K = k) for K ~ Binomial(n, p)."""
    if p in (0.0, 1.0):
        return float(k == n * p)
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p))
