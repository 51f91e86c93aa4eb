"""Quantiles of Student's t against printed tables and closed forms."""

import math

import pytest

from introspect_ray.scores.student_t import t_quantile


@pytest.mark.parametrize(
    ("freedom", "two_sided_95", "two_sided_90"),
    [(1, 12.706, 6.314), (2, 4.303, 2.920), (3, 3.182, 2.353), (4, 2.776, 2.132), (9, 2.262, 1.833),
     (30, 2.042, 1.697), (1000, 1.962, 1.646)],
)  # fmt: skip
def test_quantiles_of_the_tables(freedom, two_sided_95, two_sided_90):
    assert round(t_quantile(0.95, freedom), 3) == two_sided_95 and round(t_quantile(0.9, freedom), 3) == two_sided_90


def test_closed_forms():
    """Cauchy: tan(pi p / 2). Two degrees: P(|T| <= t) = t / sqrt(2 + t²), so t = p sqrt(2 / (1 - p²))."""
    assert t_quantile(0.7, 1) == pytest.approx(math.tan(0.35 * math.pi), rel=1e-12)
    assert t_quantile(0.7, 2) == pytest.approx(0.7 * math.sqrt(2 / 0.51), rel=1e-12)


@pytest.mark.parametrize(("coverage", "freedom"), [(1.0, 3), (0.0, 3), (0.95, 0)])
def test_what_there_is_no_quantile_of(coverage, freedom):
    with pytest.raises(ValueError, match="degree of freedom"):
        t_quantile(coverage, freedom)
