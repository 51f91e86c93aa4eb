"""Prompt trees against the token sequences that they stand for, and the cache of trees."""

import pytest
from learner_helpers import make_cases, make_pairs, with_free_text

from introspect_ray.cases.lookup import RecordMapping
from introspect_ray.records import AuxiliaryText, BehaviorPair, Explanation, TokenizedCase
from introspect_ray.training import prompt_tree
from introspect_ray.training.prompt_tree import ONE_TOKEN, TreeCache, build_tree, response_paths, text_tree


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
    tree = build_tree(case, Explanation(False, "A"), ONE_TOKEN)
    assert tree.token.tolist() == [1, 7, 3, 4, 5, 20, 9, 4]
    assert tree.parent.tolist() == [-1, 0, 1, 2, 2, 4, 5, 1]
    assert tree.depth.tolist() == [0, 1, 2, 3, 3, 4, 5, 2]
    assert tree.end.tolist() == [8, 8, 7, 4, 7, 7, 7, 8]
    assert [side.kl_nodes.tolist() for side in tree.sides] == [[3], [7]]
    assert tree.predictors.tolist() == [4, 5, 6]
    assert tree.targets.tolist() == [20, 9, 2]
    assert tree.branch_nodes.tolist() == [5]


def test_labels_of_several_tokens_by_hand():
    """x = 1 7 3, x∖C = 1 7; labels 9 5, 8 6 and 8 7 4, so the inner nodes come after (), 9, 8 and 8 7.

    M0 answers the third on x, whose path is 8 7, and the first on x∖C, whose path is 9. The trie is
    1 (7 (3 (8 (7), 9), 8 (7), 9)); its nodes in depth-first order: 1, 7, 3, x: 8, 87, 9, x∖C: 8, 87, 9.
    """
    labels = ("P", "Q", "R")
    case = TokenizedCase(
        "c", labels, ((9, 5), (8, 6), (8, 7, 4)), (1, 7, 3), (1, 7), (1, 7, 3),
        {Explanation(False, label): (20, i, 2) for i, label in enumerate(labels)},
    )  # fmt: skip
    m0 = BehaviorPair("c", "R", "P", (), (), False, False, 0)
    tree = build_tree(case, None, response_paths(case, m0))
    assert tree.token.tolist() == [1, 7, 3, 8, 7, 9, 8, 7, 9]
    assert tree.parent.tolist() == [-1, 0, 1, 2, 3, 2, 1, 6, 1]
    assert tree.end.tolist() == [9, 9, 6, 5, 5, 6, 8, 8, 9]
    assert [node.prefix for node in tree.label_trie] == [(), (9,), (8,), (8, 7)]
    assert tree.cued.kl_nodes.tolist() == [2, 3, 4] and tree.ablated.kl_nodes.tolist() == [1, 8]
    assert tree.cued.label_nodes.tolist() == [2, 5, 3, 4] and tree.ablated.label_nodes.tolist() == [1, 8, 6, 7]
    assert tree.cued.label_kl.tolist() == [0, -1, 1, 2] and tree.ablated.label_kl.tolist() == [0, 1, -1, -1]


def test_free_text_is_predicted_up_to_its_end_of_turn():
    """At most 3 tokens: 41 42 ended by itself, so its end of turn is predicted too; 43 44 45 was cut after 45."""
    (case,) = map(with_free_text, make_cases(1))
    m0 = BehaviorPair(case.case_id, "refuse", "comply", (), (), False, False, 0, (41, 42), (43, 44, 45))
    tree = build_tree(case, None, response_paths(case, m0))
    assert [tokens_to(tree, n) for n in tree.cued.kl_nodes] == [case.prompt + (41, 42)[:k] for k in range(3)]
    assert [tokens_to(tree, n) for n in tree.ablated.kl_nodes] == [case.ablated + (43, 44)[:k] for k in range(3)]
    assert tree.label_trie == () and not len(tree.cued.label_nodes)


def test_an_auxiliary_text_is_a_chain_up_to_its_last_target():
    """Tokens 5 6 7 8 9 with targets 6 and 8: 9 and 8 need no node, since nothing is predicted after them."""
    tree = text_tree(AuxiliaryText("t", (5, 6, 7, 8, 9), (False, True, False, True, False)))
    assert tree.token.tolist() == [5, 6, 7] and tree.depth.tolist() == [0, 1, 2] and tree.end.tolist() == [3, 3, 3]
    assert tree.predictors.tolist() == [0, 2] and tree.targets.tolist() == [6, 8]
    assert text_tree(AuxiliaryText("t", (5, 6), (False, False))) is None
    with pytest.raises(ValueError, match="auxiliary text t: 2 tokens with 2 marks, of which the first must be false"):
        text_tree(AuxiliaryText("t", (5, 6), (True, True)))


@pytest.mark.parametrize("label", [Explanation(True, "B"), Explanation(False, "D"), None])
def test_nodes_spell_the_sequences(label):
    for case in make_cases(20):
        tree = build_tree(case, label, ONE_TOKEN)
        for side, prompt in ((tree.cued, case.prompt), (tree.ablated, case.ablated)):
            assert [tokens_to(tree, node) for node in side.kl_nodes] == [prompt]
            assert [tokens_to(tree, node) for node in side.label_nodes] == [prompt]
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
    table, cache, m0 = CountingTable(cases), TreeCache(), make_pairs(cases)
    keys = [("case-0", label), ("case-1", None), ("case-0", label)]
    first = cache.trees(table, keys, m0)
    assert [(tree.case_id, tree.label) for tree in first] == keys and first[0] is first[2]
    again = cache.trees(table, [("case-1", None), ("case-2", None), ("case-0", None)])
    assert again[0] is first[1]
    assert table.taken == [["case-0", "case-1"], ["case-2", "case-0"]]
    monkeypatch.setattr(prompt_tree, "CACHED_TOKENS", 1)
    small = TreeCache()
    assert [tree.case_id for tree in small.trees(table, keys, m0)] == ["case-0", "case-1", "case-0"]
    small.trees(table, keys, m0)
    assert table.taken[2:] == [["case-0", "case-1"], ["case-0"]]


@pytest.mark.parametrize("empty", ["prompt", "ablated", "question"])
def test_an_empty_sequence_is_refused(empty):
    (case,) = make_cases(1)
    parts = {name: getattr(case, name) for name in TokenizedCase.__slots__}
    with pytest.raises(ValueError, match="case-0: x, x∖C and q must have at least one token each"):
        build_tree(TokenizedCase(**{**parts, empty: ()}), None, None)
