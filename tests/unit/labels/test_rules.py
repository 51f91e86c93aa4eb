"""Draws and the three supervision rules, with numbers derived by hand."""

import math
from collections import Counter
from itertools import product

import pytest

from introspect_ray.config import RunConfig
from introspect_ray.labels.rules import (
    Sources,
    draw,
    fixed_label,
    make_labels,
    mixed_label,
    online_label,
    realised_agreement,
)
from introspect_ray.records import BehaviorPair, Explanation, Label

LETTERS = ("A", "B", "C", "D")


def pair(cued="A", ablated="B", case_id="q", version=3):
    return BehaviorPair(case_id, cued, ablated, (0.0,) * 4, (0.0,) * 4, False, False, version)


def online(p, agreement, wrong_label="content", step=5, seed=0):
    return online_label(
        p, LETTERS, agreement=agreement, wrong_label=wrong_label, seed=seed, step=step, source_model="organism"
    )


# --- draws -----------------------------------------------------------------------------------------------------


def test_draw_is_the_same_in_every_release_and_process():
    """Pinned: a replay of a published run needs this number, BLAKE2b-64 of repr((0, 0, 'q', 'agreement')).

    hash() of a string would give another one in every process: it is salted."""
    assert draw(0, 0, "q", "agreement") == 0.6571872470975061


def test_draw_depends_on_every_part_of_its_key():
    base = (0, 1, "q", "s")
    others = [
        (1, 1, "q", "s"),
        (0, 2, "q", "s"),
        (0, 1, "r", "s"),
        (0, 1, "q", "t"),
        (0, 1, "qs", ""),
        (1, 0, "q", "s"),
    ]
    assert len({draw(*key) for key in [base, *others]}) == 7


def test_draw_is_uniform():
    """10,000 draws: mean 1/2 ± 4 sd of 0.0029, each tenth 1,000 ± 4 sd of 30."""
    numbers = [draw(0, step, "q", "s") for step in range(10_000)]
    assert all(0 <= x < 1 for x in numbers)
    assert abs(sum(numbers) / 10_000 - 0.5) < 4 * 0.0029
    assert all(abs(n - 1000) < 120 for n in Counter(int(10 * x) for x in numbers).values())


# --- fixed -----------------------------------------------------------------------------------------------------


def test_fixed_label_is_e_of_m0_with_provenance():
    label = fixed_label(pair("A", "B", version=0), "organism", 7)
    assert label.explanation == (True, "B") and label.current is None
    p = label.provenance
    assert (p.rule, p.source_model, p.cued_version, p.ablated_version, p.seed, p.step, p.flipped) == (
        "fixed", "organism", 0, 0, 7, -1, False,
    )  # fmt: skip
    assert math.isnan(p.draw)


# --- online ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cued,ablated", list(product(LETTERS, LETTERS)))
def test_wrong_content_labels_stay_self_consistent(cued, ablated):
    """For every y(x), y(x∖C): y(x) = A and a wrong content of A must say "would not change from A". Code that keeps
    the old *changed* says "would change to A"."""
    for step in range(40):
        label = online(pair(cued, ablated), 0.0, step=step)
        assert label.explanation.content != ablated
        assert label.explanation.changed == (label.explanation.content != cued)


@pytest.mark.parametrize("cued,ablated", list(product(LETTERS, LETTERS)))
@pytest.mark.parametrize("wrong_label", ["content", "any"])
def test_agreement_one_never_flips_and_zero_always_does(cued, ablated, wrong_label):
    truth = Explanation(cued != ablated, ablated)
    for step in range(40):
        kept, flipped = (online(pair(cued, ablated), nu, wrong_label, step) for nu in (1.0, 0.0))
        assert kept.explanation == kept.current == truth and not kept.provenance.flipped
        assert flipped.explanation != truth and flipped.current == truth and flipped.provenance.flipped


def test_corruption_is_uniform_over_the_other_contents():
    """ν = 0.7 over 12,000 cases: 3,600 flips, 1,200 to each of A, C, D; 4 sd are 201 and 134. Code that draws over all
    four letters would leave 900 flips at the true B; code that reuses the ν draw would favour the last letter."""
    labels = [online(pair("A", "B", f"q{i}"), 0.7) for i in range(12_000)]
    flipped = [label.explanation.content for label in labels if label.provenance.flipped]
    assert abs(len(flipped) - 3600) < 201
    counts = Counter(flipped)
    assert set(counts) == {"A", "C", "D"} and all(abs(n - 1200) < 134 for n in counts.values())


def test_any_rule_is_uniform_over_the_seven_other_labels():
    """7,000 flips are 1,000 ± 4 sd of 29 per label, including those that contradict y(x) = A, such as (changed, A)."""
    counts = Counter(online(pair("A", "B", f"q{i}"), 0.0, "any").explanation for i in range(7000))
    assert len(counts) == 7 and (True, "A") in counts and (True, "B") not in counts
    assert all(abs(n - 1000) < 118 for n in counts.values())


def test_a_larger_agreement_keeps_what_a_smaller_one_kept():
    """Each case has one draw to compare with ν: sweeps of ν differ only by the cases between two thresholds."""
    kept = {
        nu: {i for i in range(500) if not online(pair(case_id=f"q{i}"), nu).provenance.flipped} for nu in (0.4, 0.7)
    }
    assert kept[0.4] < kept[0.7]


def test_online_provenance_names_both_parents_and_the_draw():
    p = online(pair(version=9), 0.5, step=11, seed=2).provenance
    assert (p.rule, p.source_model, p.cued_version, p.ablated_version, p.seed, p.step) == (
        "online",
        "organism",
        9,
        9,
        2,
        11,
    )
    assert p.draw == draw(2, 11, "q", "agreement") and p.flipped == (p.draw >= 0.5)


def test_labels_do_not_depend_on_the_order_of_cases():
    """A stateful generator would give the reversed list other labels."""
    pairs = [pair("A", "B", f"q{i}") for i in range(50)]
    assert [online(p, 0.5) for p in reversed(pairs)] == [online(p, 0.5) for p in pairs][::-1]


# --- mixed -----------------------------------------------------------------------------------------------------


def mixed(case_id, ratio, step=-1):
    return mixed_label(
        pair("A", "A", case_id, 0), pair("A", "B", case_id, 0),
        mixing_ratio=ratio, seed=1, step=step, sources=("first", "second"),
    )  # fmt: skip


def test_mask_takes_its_share_and_is_nested_and_constant_in_time():
    """α = 0.25 of 4,000 cases: 1,000 ± 4 sd of 27. Masks of growing α are nested."""
    taken = {a: {i for i in range(4000) if mixed(f"q{i}", a).provenance.source_model == "second"} for a in (0.25, 0.5)}
    assert abs(len(taken[0.25]) - 1000) < 110 and taken[0.25] < taken[0.5]
    assert all(
        mixed(f"q{i}", 0.5, step).explanation == mixed(f"q{i}", 0.5).explanation for i in range(50) for step in (0, 9)
    )


@pytest.mark.parametrize("ratio,source,explanation", [(0.0, "first", (False, "A")), (1.0, "second", (True, "B"))])
def test_ends_of_the_mixture_are_pure(ratio, source, explanation):
    for i in range(200):
        label = mixed(f"q{i}", ratio)
        assert label.provenance.source_model == source and label.explanation == explanation
        assert label.provenance.rule == "mixed" and not label.provenance.flipped and label.current is None


def test_mixing_pairs_of_two_cases_is_refused():
    with pytest.raises(ValueError, match="'a' and 'b'"):
        mixed_label(pair(case_id="a"), pair(case_id="b"), mixing_ratio=0.5, seed=0, sources=("x", "y"))


# --- the rule of a run ----------------------------------------------------------------------------------------------


def test_make_labels_follows_the_rule_of_the_config():
    """fixed: labels of M0; mixed at ratio 1: of the second policy; online at agreement 1: of the given pairs."""
    ids = ["a", "b"]
    m0, second = ({i: pair("A", y, i, version=0) for i in ids} for y in "BC")
    sources = Sources(dict.fromkeys(ids, LETTERS), "organism", m0, "other", second)
    current = [pair("A", "D", i) for i in ids]
    for rule, pairs, content, source, version in (
        ({"rule": "fixed"}, [], "B", "organism", 0),
        ({"rule": "mixed", "mixing_ratio": 1.0, "second_policy": "other"}, [], "C", "other", 0),
        ({"rule": "online", "agreement": 1.0}, current, "D", "organism", 3),
    ):
        labels = make_labels(RunConfig.model_validate({"supervision": rule}), sources, 5, ids, pairs)
        assert [(x.case_id, x.explanation) for x in labels] == [(i, Explanation(True, content)) for i in ids]
        got = {(p.rule, p.source_model, p.cued_version, p.step) for p in (x.provenance for x in labels)}
        assert got == {(rule["rule"], source, version, 5)}
    online_cfg = RunConfig.model_validate({"supervision": {"rule": "online"}})
    for others in (current[::-1], current[:1]):
        with pytest.raises(RuntimeError, match="step 5: the engines returned pairs of other cases"):
            make_labels(online_cfg, sources, 5, ids, others)


# --- realised agreement ----------------------------------------------------------------------------------------


def test_realised_agreement_counts_labels_equal_to_e_of_their_pair():
    """Of three labels with a sampled pair (B, changed) two are equal to it; (False, B) shares the content only."""
    truth, other = Explanation(True, "B"), Explanation(False, "B")
    made = online(pair("A", "B"), 1.0).provenance
    labels = [Label("q", explanation, truth, made) for explanation in (truth, truth, other)]
    unsampled = fixed_label(pair("A", "B"), "m", 0)
    assert realised_agreement([*labels, unsampled]) == 2 / 3
    assert realised_agreement([unsampled]) is None and realised_agreement([]) is None
