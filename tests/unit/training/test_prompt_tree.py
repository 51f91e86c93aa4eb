"""Prompt trees against the token sequences that they stand for, and the cache of trees."""

import pytest
from learner_helpers import make_cases

from introspect_ray.cases.lookup import RecordMapping
from introspect_ray.records import Explanation, TokenizedCase
from introspect_ray.training import prompt_tree
from introspect_ray.training.prompt_tree import TreeCache, build_tree


def path_of(tree, node):
    path = []
    while node >= 0:
        path.append(node)
        node = tree.parent[node]
    return path[::-1]


def tokens_to(tree, node):
    return tuple(tree.token[path_of(tree, node)].tolist())


def test_tree_by_hand():
    """x = 1 7 3 4, x∖C = 1 7 4, q = 1 7 3 5, e = 20 9 2 or 20 8 2; the target is 20 9 2.

    The trie is 1 7 (3 (4, 5 20 9), 4). The explanations part after 20, and the last token, 2, needs no node.
    """
    case = TokenizedCase(
        "c", ("A", "B"), ((9,), (8,)), (1, 7, 3, 4), (1, 7, 4), (1, 7, 3, 5),
        {Explanation(False, "A"): (20, 9, 2), Explanation(False, "B"): (20, 8, 2)},
    )  # fmt: skip
    tree = build_tree(case, Explanation(False, "A"))
    assert tree.token.tolist() == [1, 7, 3, 4, 5, 20, 9, 4]
    assert tree.parent.tolist() == [-1, 0, 1, 2, 2, 4, 5, 1]
    assert tree.depth.tolist() == [0, 1, 2, 3, 3, 4, 5, 2]
    assert tree.end.tolist() == [8, 8, 7, 4, 7, 7, 7, 8]
    assert (tree.cued, tree.ablated) == (3, 7)
    assert tree.predictors.tolist() == [4, 5, 6]
    assert tree.targets.tolist() == [20, 9, 2]
    assert tree.branch_nodes.tolist() == [5]


@pytest.mark.parametrize("label", [Explanation(True, "B"), Explanation(False, "D"), None])
def test_nodes_spell_the_sequences(label):
    for case in make_cases(20):
        tree = build_tree(case, label)
        assert tokens_to(tree, tree.cued) == case.prompt
        assert tokens_to(tree, tree.ablated) == case.ablated
        for k, node in enumerate(tree.predictors):
            assert tokens_to(tree, node) == case.question + case.explanations[label][:k]
        for branch, node in zip(tree.branches, tree.branch_nodes, strict=True):
            assert tokens_to(tree, node) == case.question + branch.prefix
        siblings = list(zip(tree.parent.tolist(), tree.token.tolist(), strict=True))
        assert len(set(siblings)) == len(siblings), "two nodes spell the same prefix"


class CountingTable(RecordMapping[TokenizedCase]):
    """Cases by id, as a table that decodes a batch per call; `taken` lists the batches."""

    def __init__(self, cases):
        self._cases, self.taken = {case.case_id: case for case in cases}, []

    @property
    def case_ids(self):
        return list(self._cases)

    def take(self, case_ids):
        self.taken.append(list(case_ids))
        return [self._cases[case_id] for case_id in self.taken[-1]]

    def __getitem__(self, case_id):
        raise AssertionError("a case was looked up on its own")

    def __iter__(self):
        return iter(self._cases)

    def __len__(self):
        return len(self._cases)


def test_cases_are_looked_up_once_per_batch_and_only_for_new_trees(monkeypatch):
    """A cache of one token is emptied before each new tree, so it keeps only the last one."""
    cases, label = make_cases(3), Explanation(True, "A")
    table, cache = CountingTable(cases), TreeCache()
    keys = [("case-0", label), ("case-1", None), ("case-0", label)]
    first = cache.trees(table, keys)
    assert [(tree.case_id, tree.label) for tree in first] == keys and first[0] is first[2]
    again = cache.trees(table, [("case-1", None), ("case-2", None), ("case-0", None)])
    assert again[0] is first[1]
    assert table.taken == [["case-0", "case-1"], ["case-2", "case-0"]]
    monkeypatch.setattr(prompt_tree, "CACHED_TOKENS", 1)
    small = TreeCache()
    assert [tree.case_id for tree in small.trees(table, keys)] == ["case-0", "case-1", "case-0"]
    small.trees(table, keys)
    assert table.taken[2:] == [["case-0", "case-1"], ["case-0"]]


@pytest.mark.parametrize("empty", ["prompt", "ablated", "question"])
def test_an_empty_sequence_is_refused(empty):
    (case,) = make_cases(1)
    parts = {name: getattr(case, name) for name in TokenizedCase.__slots__}
    with pytest.raises(ValueError, match="case-0: x, x∖C and q must have at least one token each"):
        build_tree(TokenizedCase(**{**parts, empty: ()}), None)
