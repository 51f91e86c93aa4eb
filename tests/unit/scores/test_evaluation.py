"""The blocks of summary.json and details.json that come from the held-out evaluation, by hand."""

import pytest

from introspect_ray.records import BehaviorPair
from introspect_ray.records import Explanation as E
from introspect_ray.scores.evaluation import details, evaluate


def pairs(text):
    """ "AB CC" -> pairs y(x) = A, y(x∖C) = B and C, C of cases 0 and 1."""
    return [
        BehaviorPair(str(i), a, b, (0.0,) * 4, (0.0,) * 4, False, False, 0) for i, (a, b) in enumerate(text.split())
    ]


def test_evaluate_by_hand():
    """Self truth (T,B) (F,A) (F,C) (F,D); Orig (T,B) (T,A) (F,C) (T,C). The predictions are right for Self on 0, 1,
    for Orig on 0, 3. They part on 1 and 3: one goes to Self, one to Orig. Behaviour: both answers as M0 on 0, 2; cued
    on 0, 2, 3; ablated on 0, 1, 2. Code that swaps the truths shows in changed_f1: Self 2·1/(2+1), Orig 2·2/(2+3)."""
    predicted = [E(True, "B"), E(False, "A"), None, E(True, "C")]
    out = evaluate(pairs("AB AA CC DD"), pairs("AB BA CC DC"), predicted)
    assert out["explanation"]["self"]["em"] == out["explanation"]["orig"]["em"] == 0.5
    assert out["explanation"]["self"]["changed_f1"] == pytest.approx(2 / 3)
    assert out["explanation"]["orig"]["changed_f1"] == pytest.approx(4 / 5)
    assert out["behavior"] == {"em": 0.5, "cued": 0.75, "ablated": 0.75, "off_format": 0.0}
    assert out["disagreement"] == {"fraction": 0.5, "self": 0.5, "orig": 0.5, "neither": 0.0}


def test_untrained_policy_has_self_equal_orig():
    m0 = pairs("AB AA CC DD")
    out = evaluate(m0, m0, [None, E(False, "A"), None, None])
    assert out["explanation"]["self"] == out["explanation"]["orig"] and out["explanation"]["self"]["em"] == 0.25
    assert out["behavior"]["em"] == 1.0 and out["disagreement"]["self"] is None


def test_details_by_hand():
    """A collapsed M0 says A whatever it is asked; of the six categories the five it never gives are there with 0.
    The policy's explanations: both right for itself, (T,A) and (F,B), and none for M0's (F,A): a gap of 1."""
    out = details(pairs("AA AA"), pairs("BA BB"), [E(True, "A"), E(False, "B")], [("A", "B"), ("B", "C", "A")])
    names = [f"{change} {label}" for change in ("unchanged", "changed") for label in "ABC"]
    assert list(out["histogram"]["m0"]) == list(out["histogram"]["policy"]) == names
    assert list(out["histogram"]["m0"].values()) == [2, 0, 0, 0, 0, 0]
    assert list(out["histogram"]["policy"].values()) == [0, 1, 0, 1, 0, 0]
    assert out["gap"]["value"] == 1.0 and out["findings"]


def test_evaluate_refuses_other_cases():
    with pytest.raises(ValueError):
        evaluate(pairs("AB AA"), pairs("AB"), [None, None])
    with pytest.raises(ValueError):
        evaluate(pairs("AB AA"), pairs("AB AA"), [None])
