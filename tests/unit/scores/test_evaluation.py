"""The evaluation blocks and the summary contract."""

import copy
import json

import pytest

from introspect_ray.config import RunConfig
from introspect_ray.records import BehaviorPair
from introspect_ray.records import Explanation as E
from introspect_ray.scores.evaluation import check_summary, details, evaluate, summary

TIMING = dict.fromkeys(("setup", "rollout", "relabel", "train", "sync", "eval", "total"), 1.5)
LABELS = {"requested_agreement": None, "realised_at_labelling": None, "realised_at_consumption": 0.5, "split_pairs": 0}


def pairs(text):
    """ "AB CC" -> pairs y(x) = A, y(x∖C) = B and C, C of cases 0 and 1."""
    return [
        BehaviorPair(str(i), a, b, (0.0,) * 4, (0.0,) * 4, False, False, 0) for i, (a, b) in enumerate(text.split())
    ]


def scores():
    return evaluate(pairs("AB AA CC DD"), pairs("AB BA CC DC"), [E(True, "B"), E(False, "A"), None, E(True, "C")])


def made(cfg=None):
    return summary(cfg or RunConfig(), scores(), cases={"train": 9, "test": 4}, labels=LABELS, timing=TIMING)


def test_evaluate_by_hand():
    """Self truth (T,B) (F,A) (F,C) (F,D); Orig (T,B) (T,A) (F,C) (T,C). The predictions are right for Self on 0, 1,
    for Orig on 0, 3. They part on 1 and 3: one goes to Self, one to Orig. Behaviour: both answers as M0 on 0, 2; cued
    on 0, 2, 3; ablated on 0, 1, 2. Code that swaps the truths shows in changed_f1: Self 2·1/(2+1), Orig 2·2/(2+3)."""
    out = scores()
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


def test_summary_holds_the_documented_keys_and_strict_json():
    out = made()
    assert list(out) == [
        "task", "policy", "method", "kl_weight", "seed", "steps", "lag", "supervision", "cases",
        "explanation", "behavior", "disagreement", "labels", "timing_s",
    ]  # fmt: skip
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["supervision"] == {"rule": "fixed", "agreement": None, "mixing_ratio": None}


@pytest.mark.parametrize(
    "section,expected",
    [
        ({"rule": "online", "agreement": 0.7}, {"rule": "online", "agreement": 0.7, "mixing_ratio": None}),
        (
            {"rule": "mixed", "mixing_ratio": 0.0, "second_policy": "x"},
            {"rule": "mixed", "agreement": None, "mixing_ratio": 0.0},
        ),
    ],
)
def test_summary_shows_what_the_rule_uses(section, expected):
    assert made(RunConfig(supervision=section))["supervision"] == expected


@pytest.mark.parametrize(
    "path,value,message",
    [
        (("behavior", "em"), None, "behavior.em is None"),
        (("behavior", "em"), float("nan"), "behavior.em is nan"),
        (("behavior", "em"), 73.0, "behavior.em is 73.0, not a share"),  # percent by mistake
        (("labels", "realised_at_labelling"), float("nan"), "labels.realised_at_labelling is nan"),
        (("explanation", "self", "em_ci"), [0.6, 0.4], "em_ci is [0.6, 0.4]"),
        (("explanation", "self", "em_ci"), [0.6], "em_ci is [0.6]"),
        (("cases", "test"), 4.0, "cases.test is 4.0, not a count"),
        (("seed",), True, "seed is True"),
        (("timing_s", "total"), -1.0, "timing_s.total is -1.0"),
        (("kl_weight",), float("inf"), "kl_weight is inf"),
        (("explanation", "third"), {}, "explanation.third is not a known key"),
        (("behavior",), 0.5, "behavior is 0.5, not an object"),
    ],
)
def test_check_summary_names_the_fault(path, value, message):
    data = copy.deepcopy(made())
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ValueError) as error:
        check_summary(data)
    assert message in str(error.value)


def test_check_summary_names_every_missing_key():
    data = made()
    del data["seed"], data["labels"]["split_pairs"]
    with pytest.raises(ValueError, match=r"labels\.split_pairs is missing; seed is missing"):
        check_summary(data)
    check_summary(made())
