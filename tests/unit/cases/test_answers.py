"""Reading closed labels of several tokens off logprobs; all expected values by hand."""

from __future__ import annotations

import math

import pytest

from introspect_ray.cases.answers import LabelNode, Reading, label_nodes, make_pair, read_label
from introspect_ray.records import TokenizedCase

CASE = TokenizedCase("case-0", tuple("ABCD"), ((10,), (11,), (12,), (13,)), (1,), (2,), (3,), {})


def test_one_token_labels_are_the_root_alone_in_their_order():
    assert label_nodes(((12,), (10,), (11,))) == (LabelNode((), (12, 10, 11), (~0, ~1, ~2)),)


def test_the_trie_holds_every_inner_node_also_those_with_one_child():
    # 5 6 7, 5 8, 9: the root, after 5, after 5 6
    assert label_nodes(((5, 6, 7), (5, 8), (9,))) == (
        LabelNode((), (5, 9), (1, ~2)),
        LabelNode((5,), (6, 8), (2, ~1)),
        LabelNode((5, 6), (7,), (~0,)),
    )


@pytest.mark.parametrize("tokens", [((5,), (5, 6)), ((5, 6), (5, 6)), ((), (5,))])
def test_labels_that_cannot_be_told_apart_are_refused(tokens):
    with pytest.raises(ValueError, match="prefix"):
        label_nodes(tokens)


def test_the_greedy_label_may_differ_from_the_likeliest_one():
    # At the root 5 has .6 and 9 has .4; below 5 the labels have .5 and .3 of it (the rest is off format), in all
    # .3, .18 and .4: the likeliest is label 2, but greedy decoding goes to 5 first and says label 0.
    nodes = label_nodes(((5, 6), (5, 8), (9,)))
    logs = [[math.log(0.6), math.log(0.4)], [math.log(0.5), math.log(0.3)]]
    read = read_label(nodes, logs, free=[5, 6])
    assert read.label == 0
    assert read.logprobs == pytest.approx([math.log(0.3), math.log(0.18), math.log(0.4)])
    assert (read.path, read.off_format) == ((0, 1), False)


def test_off_format_is_judged_on_the_path_that_is_taken():
    nodes = label_nodes(((5, 6), (7, 8)))
    logs = [[-0.1, -3.0], [-0.2], [-0.2]]
    assert not read_label(nodes, logs, free=[5, 6, 99]).off_format  # node 2 is not on the path
    assert read_label(nodes, logs, free=[5, 99, 8]).off_format
    assert read_label(nodes, logs, free=[99, 6, 8]).off_format


def test_ties_go_to_the_first_label():
    nodes = label_nodes(((10,), (11,)))
    assert read_label(nodes, [[-1.0, -1.0]], free=[10]).label == 0


def test_pair_is_what_both_sides_read():
    """On x the walk ends at B, in format; on x∖C at C, and there free decoding would have left the labels."""
    cued = Reading(1, (-3.0, -1.0, -2.0, -1.0), False, (0,))
    ablated = Reading(2, (-3.0, -2.0, -1.0, -4.0), True, (0,))
    pair = make_pair(CASE, cued, ablated, 7)
    assert (pair.cued, pair.ablated, pair.weight_version) == ("B", "C", 7)
    assert (pair.cued_off_format, pair.ablated_off_format) == (False, True)
    assert (pair.cued_logprobs, pair.ablated_logprobs) == (cued.logprobs, ablated.logprobs)


def test_nan_logprobs_are_an_error_not_a_label():
    good, bad = (Reading(0, (first, -2.0, -3.0, -4.0), False, (0,)) for first in (-1.0, float("nan")))
    with pytest.raises(ValueError, match=r"case-0: label logprobs on x∖C .* version 3"):
        make_pair(CASE, good, bad, 3)
