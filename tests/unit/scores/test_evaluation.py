"""The blocks of summary.json and details.json that come from the held-out evaluation, by hand."""

from dataclasses import replace

import pytest
from evaluated import cases, pairs, random_cases

from introspect_ray.records import Explanation as E
from introspect_ray.scores.evaluation import against_scores, details, evaluate, mixture_scores
from introspect_ray.scores.metrics import behavior_scores, explanation_scores


def test_evaluate_by_hand():
    """Self truth (T,B) (F,A) (F,C) (F,D); Orig (T,B) (T,A) (F,C) (T,C). The predictions are right for Self on 0, 1,
    for Orig on 0, 3. They part on 1 and 3: one goes to Self, one to Orig. Behaviour: both answers as M0 on 0, 2; cued
    on 0, 2, 3; ablated on 0, 1, 2. Code that swaps the truths shows in changed_f1: Self 2·1/(2+1), Orig 2·2/(2+3),
    and in *changed?*: right for Self on 0, 1, for Orig on 0, 3 and in content for Self on 0, 1, for Orig on 0, 1, 3."""
    out = evaluate(cases("AB AA CC DD", "AB BA CC DC", [E(True, "B"), E(False, "A"), None, E(True, "C")]))
    assert out["explanation"]["self"]["em"] == out["explanation"]["orig"]["em"] == 0.5
    assert out["explanation"]["self"]["changed_f1"] == pytest.approx(2 / 3)
    assert out["explanation"]["orig"]["changed_f1"] == pytest.approx(4 / 5)
    assert out["explanation"]["self"]["changed_accuracy"] == out["explanation"]["orig"]["changed_accuracy"] == 0.5
    assert out["behavior"] == {"em": 0.5, "cued": 0.75, "ablated": 0.75, "off_format": 0.0}
    assert out["disagreement"] == {"fraction": 0.5, "self": 0.5, "orig": 0.5, "neither": 0.0}
    assert {part: gap["value"] for part, gap in out["gap"].items()} == {
        "em": 0,
        "content": -0.25,
        "changed_accuracy": 0,
    }
    assert out["groups"] == {} and out["sources"] is None


def test_results_are_of_the_test_split_and_the_dev_split_has_gaps_of_its_own():
    """Cases 0, 1 test, 2, 3 (one question) dev. Test: right for Self on 0 alone. Dev: right for Orig on both. All four
    together would give a gap of -1/4. The policies answer alike on no case."""
    said = [E(False, "A"), None, E(False, "B"), E(False, "B")]
    some = cases("AA AA AA AA", "BB BB BB BB", said, questions=list("abcc"), splits=["test", "test", "dev", "dev"])
    out = evaluate(some)
    assert (
        out["gap"]["em"]["value"] == out["explanation"]["self"]["em"] == 0.5 and out["explanation"]["orig"]["em"] == 0
    )
    assert out["dev"]["cases"] == 2 and out["dev"]["questions"] == 1 and out["dev"]["gap"]["em"]["value"] == -1
    assert details(some)["gap"]["value"] == 0.5 and sum(details(some)["histogram"]["m0"].values()) == 2
    assert evaluate(some.of("test")) == {**out, "dev": None}


def test_the_gaps_interval_is_clustered_by_question():
    """Two cases right by Self only, of one question beside two right by neither of another: see test_gap.py."""
    said = [E(False, "A")] * 2 + [None] * 2
    some = cases("AA AA AA AA", "BB BB BB BB", said, questions=list("aabb"))
    assert evaluate(some)["gap"]["em"]["ci"] == pytest.approx([-0.398209, 0.898209], abs=2e-6)
    assert details(some)["gap"]["interval"] == evaluate(some)["gap"]["em"]["ci"]


def test_the_gaps_interval_by_hand():
    """One case, right by Self only: 1/3 ± 1.96 sqrt(2 - 1/3) / 3 = 1/3 ± 0.843450, cut at 1."""
    gap = evaluate(cases("BA", "AA", [E(True, "A")]))["gap"]["em"]
    assert gap == {"value": 1.0, "ci": pytest.approx([-0.510116, 1.0], abs=1e-6)}


def test_untrained_policy_has_self_equal_orig():
    m0 = "AB AA CC DD"
    out = evaluate(cases(m0, m0, [None, E(False, "A"), None, None]))
    assert out["explanation"]["self"] == out["explanation"]["orig"] and out["explanation"]["self"]["em"] == 0.25
    assert out["behavior"]["em"] == 1.0 and out["disagreement"]["self"] is None


def test_groups_by_hand():
    """Cases 0 and 2 are of group v, 1 of u. Group v: right on 0 of 2; both answers as M0 on 2. Group u: all right."""
    out = evaluate(cases("AB AA CC", "BB AA CC", [E(True, "B"), E(False, "A"), None], "vuv"))["groups"]
    assert list(out) == ["v", "u"]  # as they come
    assert out["v"]["explanation"]["self"]["em"] == 0.5 and out["v"]["explanation"]["orig"]["em"] == 0.0
    assert out["v"]["behavior"]["em"] == 0.5 and out["v"]["cases"] == 2
    assert out["u"]["explanation"]["self"]["em"] == out["u"]["behavior"]["em"] == 1.0 and out["u"]["cases"] == 1


def test_cases_without_a_group_beside_others_are_under_the_empty_name():
    some = replace(cases("AB AA", "AB AA", [None, None]), groups=["", "hint"])
    assert {group: block["cases"] for group, block in evaluate(some)["groups"].items()} == {"": 1, "hint": 1}


def test_the_four_sources_of_a_mixed_run_by_hand():
    """E of the policy (T,B) (F,A) (F,C) (F,D), of M0 (T,B) (T,A) (F,C) (T,C), of the second (F,B) (F,A) (T,D) (T,B);
    the mixture takes the second's on 1 and 2: (T,B) (F,A) (T,D) (T,C). Said: (T,B) (F,A) (T,D) (T,B).
    Right: Self 0, 1; M0 0; second 1, 2, 3; mixture 0, 1, 2. A mask read the other way would score 1/4."""
    mixed = cases(
        "AB AA CC DD", "AB BA CC DC", [E(True, "B"), E(False, "A"), E(True, "D"), E(True, "B")],
        second="BB AA CD DB", from_second=[False, True, True, False],
    )  # fmt: skip
    out = evaluate(mixed)["sources"]
    assert {name: out[name]["em"] for name in ("self", "m0", "second", "mixture")} == {
        "self": 0.5, "m0": 0.25, "second": 0.75, "mixture": 0.75,
    }  # fmt: skip
    # To the second policy: x as on 1, 2, 3 and x∖C on 0, 1; to M0: x on 0, 2, 3 and x∖C on 0, 1, 2.
    assert out["behavior"]["second"] == {"em": 0.25, "cued": 0.75, "ablated": 0.5, "off_format": 0.0}
    assert out["behavior"]["m0"] == {"em": 0.5, "cued": 0.75, "ablated": 0.75, "off_format": 0.0}


def test_a_mixture_needs_the_second_policy_and_a_mask_per_case():
    with pytest.raises(ValueError, match="'second'"):
        mixture_scores(cases("AA", "AA", [None]), [True])
    with pytest.raises(ValueError):
        mixture_scores(cases("AA", "AA", [None], second="AA"), [True, True])


def test_further_policies_are_scored_on_the_test_split():
    some = cases("AA AA", "AA AA", [E(True, "B"), None], splits=["test", "dev"], **{"against:B": "AB AB"})
    assert against_scores(some)["B"]["em"] == 1.0


def test_further_policies_by_name():
    """A policy called "policy" or "m0" in eval.against is not the one that is evaluated."""
    out = against_scores(cases("AA", "AA", [E(True, "B")], **{"against:org/model-0.5": "AB", "against:policy": "BB"}))
    assert {name: scores["em"] for name, scores in out.items()} == {"org/model-0.5": 1.0, "policy": 0.0}


def test_details_by_hand():
    """A collapsed M0 says A whatever it is asked; of the six categories the five it never gives are there with 0.
    The policy's explanations: both right for itself, (T,A) and (F,B), and none for M0's (F,A): a gap of 1."""
    collapsed = cases("BA BB", "AA AA", [E(True, "A"), E(False, "B")], labels=[("A", "B"), ("B", "C", "A")])
    out = details(collapsed)
    names = [f"{change} {label}" for change in ("unchanged", "changed") for label in "ABC"]
    assert list(out["histogram"]["m0"]) == list(out["histogram"]["policy"]) == names
    assert list(out["histogram"]["m0"].values()) == [2, 0, 0, 0, 0, 0]
    assert list(out["histogram"]["policy"].values()) == [0, 1, 0, 1, 0, 0]
    assert out["gap"]["value"] == 1.0 and out["findings"]
    assert out["gap"]["interval"] == evaluate(collapsed)["gap"]["em"]["ci"]


@pytest.mark.parametrize("seed", [3, 9])
def test_blocks_agree_with_each_other(seed):
    """Three mixed groups: their scores, weighted by their cases, are those of all; the gaps are differences."""
    out = evaluate(random_cases(seed))
    some = random_cases(seed).of("test")
    for part, gap in out["gap"].items():
        own, orig = (out["explanation"][source][part] for source in ("self", "orig"))
        assert gap["value"] == pytest.approx(own - orig) and gap["ci"][0] <= gap["value"] <= gap["ci"][1]
        weighted = sum(group["cases"] * group["explanation"]["self"][part] for group in out["groups"].values())
        assert len(out["groups"]) == 3 and weighted / len(some) == pytest.approx(own)
    assert (
        out["sources"]["self"]
        == out["explanation"]["self"]
        == explanation_scores(some.parsed, some.truth("policy"), some.questions)
    )
    assert out["sources"]["behavior"]["m0"] == out["behavior"]
    assert out["sources"]["behavior"]["second"] == behavior_scores(some.pairs["policy"], some.pairs["second"])


def test_evaluate_refuses_no_cases():
    with pytest.raises(ValueError, match="at least one"):
        evaluate(cases("", "", []))


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"said": ["unsaid"]}, "2 evaluated cases, but 1 said"),
        ({"pairs": {"m0": pairs("AB AA"), "policy": pairs("AB")}}, "but 1 pairs of 'policy'"),
        (
            {"pairs": {"m0": pairs("AB AA"), "policy": pairs("AB AA")[::-1]}},
            "'0' has a pair of 'policy' that is of case",
        ),
        ({"pairs": {"m0": pairs("AB AA")}}, "need the pairs of 'policy'; they have those of .'m0'."),
        ({"from_second": [True, False]}, "need the pairs of 'second'"),
        ({"texts": {"third": [("", "")] * 2}}, "need the pairs of 'third'"),
        ({"questions": ["q"]}, "2 evaluated cases, but 1 questions"),
        ({"splits": ["dev", "train"]}, "splits of evaluated cases are 'dev' and 'test'; they hold .'dev', 'train'."),
    ],
)
def test_cases_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        cases("AB AA", "AB AA", [None, None], **fields)
