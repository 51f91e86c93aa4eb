"""Binomial tails and intervals, by hand."""

import pytest

from introspect_ray.labels.binomial import binomial_interval, binomial_tail


def test_binomial_interval_by_hand():
    """n = 2, p = 1/2: P(K = 0, 1, 2) = 1/4, 1/2, 1/4, so a tail of 0.3 cuts both ends and 0.2 none. p = 0, 1: one k."""
    assert binomial_interval(0.5, 2, 0.3) == (0.5, 0.5)
    assert binomial_interval(0.5, 2, 0.2) == (0.0, 1.0)
    assert binomial_interval(1.0, 8) == (1.0, 1.0)
    assert binomial_interval(0.0, 8) == (0.0, 0.0)


def test_binomial_tails_by_hand():
    """Three fair draws: P(K <= 0) = 1/8, P(K <= 1) = 4/8, P(K >= 2) = 4/8, P(K >= 3) = 1/8."""
    assert [binomial_tail(k, 3, 0.5) for k in range(4)] == pytest.approx([1 / 8, 4 / 8, 4 / 8, 1 / 8])
    # Two draws at 0.7: P(K <= 0) = 0.09, P(K <= 1) = 0.51 (1 is below the mean 1.4), P(K >= 2) = 0.49.
    assert [binomial_tail(k, 2, 0.7) for k in range(3)] == pytest.approx([0.09, 0.51, 0.49])
    assert [binomial_tail(k, 4, 1.0) for k in (3, 4)] == [0.0, 1.0]  # ν = 1 allows no wrong label at all
    assert [binomial_tail(k, 4, 0.0) for k in (0, 1)] == [1.0, 0.0]


@pytest.mark.parametrize("nu", [0.0, 0.4, 0.7, 0.99, 1.0])
def test_a_tail_is_below_the_level_exactly_outside_the_interval(nu):
    low, high = binomial_interval(nu, 60, 1e-4)
    outside = [k for k in range(61) if not low <= k / 60 <= high]
    assert outside == [k for k in range(61) if binomial_tail(k, 60, nu) < 1e-4]
