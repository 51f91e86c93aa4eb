"""Self - Orig by parts: counts by hand."""

from __future__ import annotations

import math

import pytest

from introspect_ray.records import Explanation
from introspect_ray.scores.gap import gaps, paired_gap

A, B = "A", "B"


def e(changed: bool, content: str) -> Explanation:
    return Explanation(changed, content)


def test_content_and_changed_can_cancel_in_the_exact_match():
    # Two cases follow the policy in content and M0 in changed?: each part has a gap, and the exact match has none.
    said = [e(False, B), e(False, B)]
    now = [e(True, B), e(True, B)]
    before = [e(False, A), e(False, A)]
    found = gaps(said, now, before)
    assert found["em"].value == 0
    assert found["content"].value == 1
    assert found["changed_accuracy"].value == -1


def test_an_unparsed_explanation_is_wrong_in_every_part():
    found = gaps([None], [e(True, A)], [e(False, B)])
    assert [gap.value for gap in found.values()] == [0, 0, 0]


def test_the_interval_is_that_of_agresti_and_min():
    # b = 3 right by Self only, c = 1 by Orig only, n = 10: (2 +- 1.96 sqrt(5 - 4/12)) / 12
    said = [e(True, A)] * 10
    now = [e(True, A)] * 3 + [e(True, B)] + [e(False, B)] * 6
    before = [e(True, B)] * 3 + [e(True, A)] + [e(False, B)] * 6
    gap = paired_gap(said, now, before)
    half = 1.96 * math.sqrt(5 - 4 / 12) / 12
    assert gap == pytest.approx((0.2, 2 / 12 - half, 2 / 12 + half))


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match="same cases"):
        gaps([None], [], [])
