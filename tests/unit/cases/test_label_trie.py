"""The trie of all valid explanations of a case."""

import pytest

from introspect_ray.cases.label_trie import label_branches, walk_explanations
from introspect_ray.records import Explanation

END = 2
TOKENS = {
    **{Explanation(True, x): (20, 21, 22, i, 26, END) for x, i in (("A", 10), ("B", 11))},  # would change to X .
    **{Explanation(False, x): (20, 23, 21, 24, i, 26, END) for x, i in (("A", 10), ("B", 11))},  # would not change ...
}


def test_branches_by_hand():
    """The tokens branch after 20 (change or not), and after each of the two heads (A or B)."""
    branches = label_branches(tuple(TOKENS.items()))
    assert [branch.prefix for branch in branches] == [(20,), (20, 21, 22), (20, 23, 21, 24)]
    assert branches[0].tokens == (21, 23) and branches[0].leads_to == (1, 2)
    assert branches[1].tokens == (10, 11)
    assert branches[1].leads_to == (Explanation(True, "A"), Explanation(True, "B"))


def test_the_walk_is_greedy_and_takes_the_first_of_equals():
    """Logits of the children in order: 21 23 | 10 11 | 10 11. The second walk: both heads are equal, then B wins."""
    branches = label_branches(tuple(TOKENS.items()))
    logits = [0.0, 1.0, 5.0, 0.0, 2.0, 3.0, 1.0, 1.0, 0.0, 4.0, 9.0, 0.0]
    assert walk_explanations([branches, branches], logits) == [Explanation(False, "B"), Explanation(True, "B")]


def test_an_explanation_that_is_a_prefix_of_another_is_refused():
    with pytest.raises(ValueError, match="end-of-turn"):
        label_branches(((Explanation(False, "A"), (20, 9)), (Explanation(False, "B"), (20, 9, END))))
