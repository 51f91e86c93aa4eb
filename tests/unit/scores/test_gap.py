"""Self - Orig by parts: counts by hand."""

from __future__ import annotations

import pytest

from introspect_ray.records import Explanation as E
from introspect_ray.scores.gap import gaps, paired_gap


def test_content_and_changed_can_cancel_in_the_exact_match():
    """Two cases follow the policy in content and M0 in *changed?*: each part has a gap, the exact match has none."""
    predicted, own, orig = [E(False, "B")] * 2, [E(True, "B")] * 2, [E(False, "A")] * 2
    assert {name: gap.value for name, gap in gaps(predicted, own, orig).items()} == {
        "em": 0,
        "content": 1,
        "changed_accuracy": -1,
    }


def test_an_unparsed_explanation_is_wrong_in_every_part():
    assert [gap.value for gap in gaps([None], [E(True, "A")], [E(False, "B")]).values()] == [0, 0, 0]


def test_the_interval_is_that_of_agresti_and_min():
    """n = 10, right by Self only 3, by Orig only 1: gap 0.2; 2/12 ± 1.96 sqrt(5 - 4/12) / 12 = 0.166667 ± 0.352841.
    Two unpaired intervals would be far wider."""
    own, orig = [E(True, "A")] * 10, [E(True, "A")] * 4 + [E(True, "B")] * 6
    predicted = [E(True, "A")] * 7 + [E(True, "B")] + [None] * 2
    assert paired_gap(predicted, own, orig) == pytest.approx((0.2, -0.186174, 0.519507), abs=2e-6)


def test_the_interval_without_disagreement_still_has_a_width():
    """0 ± 1.96 sqrt(1) / 8: six agreeing cases are no proof that there is no gap."""
    truth = [E(True, "A")] * 6
    assert paired_gap(truth, truth, truth) == pytest.approx((0.0, -0.245, 0.245))


def test_cases_of_one_question_are_no_independent_cases():
    """n = 4 in two questions, both cases of one right by Self only: e = ½ ½ -½ -½, design effect 2, so n = 2 and b = 1:
    1/4 ± 1.96 sqrt(2 - 1/4) / 4 = 0.25 ± 0.648209. As four cases it would be 2/6 ± 1.96 sqrt(3 - 4/6) / 6."""
    own, orig = [E(True, "A")] * 4, [E(True, "B")] * 4
    predicted = [E(True, "A")] * 2 + [None] * 2
    found = paired_gap(predicted, own, orig, questions=list("aabb"))
    assert found == pytest.approx((0.5, -0.398209, 0.898209), abs=2e-6)
    assert gaps(predicted, own, orig, list("aabb"))["em"] == found
    assert paired_gap(predicted, own, orig, questions=list("abcd")) == paired_gap(predicted, own, orig) != found


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match="got 1, 0 and 0"):
        gaps([None], [], [])
    with pytest.raises(ValueError, match="got 0, 0 and 0"):
        gaps([], [], [])
