"""Quantiles of Student's t for whole degrees of freedom, by the closed form of its distribution. Pure."""

from __future__ import annotations

import math
from functools import cache


@cache
def t_quantile(coverage: float, freedom: int) -> float:
    """The t with P(|T| <= t) = coverage, for 0 < coverage < 1 and at least one degree of freedom.

    Example: t_quantile(0.95, 2) = 4.3027, the 97.5 % quantile. With t = sqrt(freedom) tan(angle) the probability is a
    finite sum that grows with the angle (Abramowitz and Stegun 26.7.3 and 26.7.4), so the angle is found by halving.
    """
    if not 0 < coverage < 1 or freedom < 1:
        raise ValueError(f"t_quantile({coverage}, {freedom}): needs 0 < coverage < 1 and at least 1 degree of freedom")
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < coverage else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):  # odd: 1, 2/3, 2·4/(3·5), ...; even: 1, 1/2, 1·3/(2·4), ...
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
