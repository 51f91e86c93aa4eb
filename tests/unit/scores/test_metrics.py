"""Scores, with every expected number derived by hand."""

import json

import pytest

from introspect_ray.records import BehaviorPair
from introspect_ray.records import Explanation as E
from introspect_ray.scores.metrics import (
    behavior_scores,
    collapse,
    constant_explainer,
    disagreement,
    explanation_scores,
    label_histogram,
    over_seeds,
    wilson,
)

LETTERS = ("A", "B", "C", "D")


def pair(cued, ablated, case_id="q", off=(False, False)):
    return BehaviorPair(case_id, cued, ablated, (0.0,) * 4, (0.0,) * 4, *off, 0)


def pairs(text):
    """ "AB CC" -> pairs y(x) = A, y(x∖C) = B and C, C of cases 0 and 1."""
    return [pair(a, b, str(i)) for i, (a, b) in enumerate(text.split())]


def test_wilson_by_hand():
    """k = 8, n = 10: z² = 3.8416; centre (0.8 + 0.19208) / 1.38416 = 0.716738;
    half 1.96 sqrt(0.016 + 0.009604) / 1.38416 = 0.226581. Wald would give 0.552 to 1.048."""
    assert wilson(8, 10) == pytest.approx((0.490157, 0.943319), abs=2e-6)


def test_wilson_at_the_ends():
    """k = 0, n = 10: hi = (z²/n) / (1 + z²/n) = 0.38416 / 1.38416 = 0.277540; Wald would have no width."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.277540), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((0.722460, 1.0), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


TRUTH = [E(True, "A"), E(True, "B"), E(True, "C"), E(False, "A"), E(False, "B"), E(False, "C")]
PREDICTED = [E(True, "A"), None, E(False, "C"), E(False, "A"), E(True, "B"), E(False, "D")]


def test_explanation_scores_by_hand():
    """EM: cases 0, 3. Content: 0, 2, 3, 4. *Changed?*: 0, 3, 5. Changed: hit 0, claimed 0 and 4, present 3:
    F1 = 2·1/(2+3) = 0.4. Unchanged: hits 3, 5, claimed 2, 3, 5, present 3: 2·2/(3+3) = 2/3; counting the unparsed
    case as "unchanged" would give 4/7, leaving it out of the denominators EM 2/5."""
    scores = explanation_scores(PREDICTED, TRUTH)
    assert set(scores) == {"em", "em_ci", "content", "changed_accuracy", "changed_f1", "unchanged_f1", "unparsed"}
    assert scores["em"] == pytest.approx(2 / 6) and scores["em_ci"] == pytest.approx(wilson(2, 6))
    assert scores["changed_accuracy"] == 3 / 6
    assert scores["content"] == pytest.approx(4 / 6) and scores["unparsed"] == pytest.approx(1 / 6)
    assert scores["changed_f1"] == pytest.approx(0.4) and scores["unchanged_f1"] == pytest.approx(2 / 3)


def test_repeated_questions_widen_the_interval():
    """Four cases, two right, of two questions that are right or wrong as a whole: worth two cases, one right."""
    truth = [E(True, "A")] * 4
    said = [E(True, "A")] * 2 + [None] * 2
    scores = explanation_scores(said, truth, list("aabb"))
    assert scores["em"] == 0.5 and scores["em_ci"] == pytest.approx(wilson(1, 2))
    assert explanation_scores(said, truth, list("abcd")) == explanation_scores(said, truth)


def test_always_unchanged_has_a_changed_f1_of_zero():
    """Paper §B.2: the degenerate explainer has one F1 at zero. It is 0, not undefined: changed cases exist."""
    scores = explanation_scores([E(False, t.content) for t in TRUTH], TRUTH)
    assert scores["changed_f1"] == 0.0 and scores["unchanged_f1"] == pytest.approx(6 / 9) and scores["content"] == 1.0


def test_f1_of_an_absent_class_is_null_not_nan():
    truth = [E(False, "A"), E(False, "B")]
    scores = explanation_scores(truth, truth)
    assert scores["changed_f1"] is None and scores["unchanged_f1"] == 1.0
    json.dumps(scores, allow_nan=False)


def test_all_unparsed_is_all_wrong():
    scores = explanation_scores([None] * 6, TRUTH)
    wrong = {"em": 0, "content": 0, "changed_accuracy": 0, "changed_f1": 0, "unchanged_f1": 0, "unparsed": 1}
    assert {key: scores[key] for key in wrong} == wrong


def test_scores_refuse_unequal_or_empty_sides():
    with pytest.raises(ValueError, match="5 and 6"):
        explanation_scores(PREDICTED[:5], TRUTH)
    with pytest.raises(ValueError, match="0 and 0"):
        explanation_scores([], [])


def test_behavior_scores_by_hand():
    """Four cases: both match; cued only; ablated only; none. EM 1/4, each part 2/4. Off-format 3 of 8 answers.
    The mean of the parts (0.5) is not the EM: both must match (eq. 4)."""
    m0 = pairs("AB AB AB AB")
    now = [
        pair("A", "B", "0", (True, True)),
        pair("A", "C", "1"),
        pair("D", "B", "2", (False, True)),
        pair("D", "C", "3"),
    ]
    assert behavior_scores(now, m0) == {"em": 0.25, "cued": 0.5, "ablated": 0.5, "off_format": 0.375}


def test_behavior_scores_refuse_other_cases():
    with pytest.raises(ValueError, match="'0' against '1'"):
        behavior_scores(pairs("AB"), [pair("A", "B", "1")])


def test_disagreement_by_hand():
    """Five cases, one where both agree (its right prediction must not count). Of the four others one goes to
    Self, one to Orig, one to a third label, one is unparsed."""
    own = [E(True, "A"), E(True, "B"), E(False, "C"), E(False, "D"), E(True, "A")]
    orig = [E(True, "A"), E(False, "B"), E(True, "C"), E(True, "D"), E(True, "B")]
    said = [E(True, "A"), E(True, "B"), E(True, "C"), E(True, "A"), None]
    assert disagreement(said, own, orig) == {"fraction": 0.8, "self": 0.25, "orig": 0.25, "neither": 0.5}


def test_the_gap_comes_from_disagreements_only():
    """Paper §3.2: Self - Orig = fraction · (self - orig), here 3/6 · (2/3 - 1/3) = 1/6."""
    own = [E(True, "A")] * 6
    orig = [E(True, "A")] * 3 + [E(False, "A")] * 3
    said = [E(True, "A"), E(True, "B"), None, E(True, "A"), E(True, "A"), E(False, "A")]
    parts = disagreement(said, own, orig)
    gap = explanation_scores(said, own)["em"] - explanation_scores(said, orig)["em"]
    assert gap == pytest.approx(1 / 6) == parts["fraction"] * (parts["self"] - parts["orig"])


def test_no_disagreement_is_null():
    assert disagreement(TRUTH, TRUTH, TRUTH) == {"fraction": 0.0, "self": None, "orig": None, "neither": None}


def test_histogram_has_eight_bins_and_keeps_zeros():
    histogram = label_histogram(pairs("AA AA BA CD"), LETTERS)
    assert list(histogram) == [f"{c} {x}" for c in ("unchanged", "changed") for x in LETTERS]
    assert histogram["unchanged A"] == 2 and histogram["changed A"] == 1 and histogram["changed D"] == 1
    assert sum(histogram.values()) == 4
    with pytest.raises(ValueError, match="changed E"):
        label_histogram(pairs("AE"), LETTERS)


def test_collapse_names_one_answer_and_a_stuck_change_rate():
    """As measured on SmolLM2: C for 56 of 60 cases without the hint, and the answer changes in 8 of 60 (13 %)."""
    m0 = pairs(" ".join(["CC"] * 49 + ["AC"] * 7 + ["AB"] + ["BB"] * 3))
    found = {f.name: f for f in collapse(m0)}
    assert set(found) == {"m0_nearly_unchanged", "m0_one_answer", "m0_one_explanation"}
    assert found["m0_one_explanation"].value == pytest.approx(49 / 60)
    assert "always saying 'unchanged C' would explain 82% of 60 cases" in str(found["m0_one_explanation"])
    assert found["m0_one_answer"].value == pytest.approx(56 / 60) and "C for 56 of 60 cases (93%)" in str(
        found["m0_one_answer"]
    )
    assert found["m0_nearly_unchanged"].value == pytest.approx(52 / 60) and "52 of 60" in str(
        found["m0_nearly_unchanged"]
    )


def test_one_explanation_is_a_finding_from_two_thirds_on():
    """SmolLM2 with the sentence hint: 25 of 32 'unchanged C', although the answer changes in 5. The bound is 2/3."""
    m0 = pairs(" ".join(["CC"] * 25 + ["BB"] * 2 + ["CB"] * 4 + ["BC"]))
    assert [f.name for f in collapse(m0)] == ["m0_one_explanation"]
    assert constant_explainer(m0) == ("unchanged C", 25 / 32)
    assert collapse(pairs("CC CC BB BC CB")) == [] and len(collapse(pairs("CC CC BC"))) == 2  # one answer, too


def test_collapse_finds_a_vanished_category_and_nothing_in_a_healthy_drift():
    m0 = pairs("AA BB CC DD BA CB DC AD")  # all eight categories once
    assert collapse(m0, m0) == [] == collapse(m0)
    found = collapse(m0, pairs("AA BB CC DD BA CB DC DD"))  # (changed, D) is gone
    assert [(f.name, f.value) for f in found] == [("category_vanished", 1.0)] and "changed D" in str(found[0])


def test_a_category_absent_under_m0_may_appear():
    """Paper footnote 12: only what was present must stay."""
    assert collapse(pairs("AA BB AB BA"), pairs("AA BB AB CA BA")) == []


def test_over_seeds_by_hand():
    """0.1, 0.2, 0.3: sd 0.1 (n - 1 below; n would give 0.0816), t = 4.302653: ± 4.302653 · 0.1 / sqrt 3 =
    0.248414."""
    assert over_seeds([0.1, 0.2, 0.3]) == pytest.approx((0.2, 0.1, -0.048414, 0.448414), abs=1e-6)
    assert over_seeds([0.4]) == (0.4, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        over_seeds([])
