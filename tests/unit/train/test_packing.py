"""Tries and packing, against the plain sequences they replace."""

import random

import numpy as np
import pytest
import torch
from learner_helpers import END, LETTER_IDS, LETTERS, explanations, make_cases, make_model

from introspect_ray.cases.label_trie import label_branches, walk_explanations
from introspect_ray.records import Explanation, TokenizedCase
from introspect_ray.train.attention import tree_mask
from introspect_ray.train.chunked_loss import Objective, ReferenceRows
from introspect_ray.train.loss import loss_scales
from introspect_ray.train.model import TreeModel
from introspect_ray.train.packing import pack, placeholder
from introspect_ray.train.prompt_tree import build_tree


def path_of(tree, node):
    path = []
    while node >= 0:
        path.append(node)
        node = tree.parent[node]
    return path[::-1]


def tokens_to(tree, node):
    return tuple(tree.token[path_of(tree, node)].tolist())


def test_tree_by_hand():
    """x = 1 7 3 4, x∖C = 1 7 4, q = 1 7 3 5, e = 20 9 2 or 20 8 2 (target 20 9 2).

    Trie: 1 7 (3 (4, 5 20 9), 4). The decision is at 20, on the target's path; 2 (end) needs no node.
    """
    case = TokenizedCase(
        "c", ("A", "B"), (9, 8), (1, 7, 3, 4), (1, 7, 4), (1, 7, 3, 5),
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


def test_mask_is_ancestors_and_self():
    trees = [build_tree(case, Explanation(False, "A")) for case in make_cases(5)]
    (batch,) = pack(trees, 10_000)
    seen = tree_mask(torch.from_numpy(batch.end_RT), torch.float32)[:, 0].isfinite()
    assert seen.sum() == sum(len(path_of(t, n)) for t in trees for n in range(len(t))) + (
        batch.tokens_RT.size - sum(map(len, trees))
    )
    starts = batch.outputs_N[:5] - [t.cued for t in batch.trees]
    flat = {tree.case_id: start for tree, start in zip(batch.trees, starts)}
    for tree in trees:
        row, at = divmod(int(flat[tree.case_id]), batch.tokens_RT.shape[1])
        for node in range(len(tree)):
            assert seen[row, at + node].nonzero()[:, 0].tolist() == [at + n for n in path_of(tree, node)]


@pytest.mark.parametrize("budget", [1, 40, 100, 512, 100_000])
def test_pack_keeps_every_tree_and_the_budget(budget):
    rng = random.Random(0)
    trees = [build_tree(c, Explanation(False, "A")) for c in make_cases(60, stem=(2, 40))]
    rng.shuffle(trees)
    batches = pack(trees, budget)
    assert sorted(t.case_id for b in batches for t in b.trees) == sorted(t.case_id for t in trees)
    for batch in batches:
        assert batch.tokens_RT.size <= budget or len(batch.trees) == 1
        behaviour, predictors, walk = batch.sections
        assert behaviour == 2 * len(batch.trees) and predictors == len(batch.targets_K) and walk == 3 * len(batch.trees)
    again = pack(trees, budget)
    assert all(np.array_equal(a.tokens_RT, b.tokens_RT) for a, b in zip(batches, again, strict=True))


def test_short_cases_do_not_make_long_rows():
    """128 trees of about 30 tokens in one 8,192-token row would cost 250 times the attention."""
    trees = [build_tree(c, Explanation(False, "A")) for c in make_cases(128)]
    batches = pack(trees, 8192)
    assert max(b.tokens_RT.shape[1] for b in batches) <= 256
    assert sum(b.tokens_RT.size for b in batches) <= 1.15 * sum(map(len, trees))


def separate_logits(model, tokens):
    return model(input_ids=torch.tensor([tokens])).logits[0]


def test_walk_equals_greedy_search_over_the_label_trie():
    model = make_model()
    module, cases = TreeModel(model), make_cases(40)
    trees = [build_tree(case, Explanation(i % 2 == 0, LETTERS[i % 4])) for i, case in enumerate(cases)]
    found, expected = {}, {}
    with torch.no_grad():
        for batch in pack(trees, 300):
            walk = module(batch).walk_P.tolist()
            said = walk_explanations([tree.branches for tree in batch.trees], walk)
            found |= dict(zip([tree.case_id for tree in batch.trees], said, strict=True))
        for case in cases:
            left, said = dict(case.explanations), ()
            while len(left) > 1:
                allowed = sorted({tokens[len(said)] for tokens in left.values()})
                logits = separate_logits(model, case.question + said)[-1]
                said += (max(allowed, key=lambda token: logits[token].item()),)
                left = {e: t for e, t in left.items() if t[: len(said)] == said}
            (expected[case.case_id],) = left
    assert found == expected
    assert len(set(found.values())) > 2, "the walk is trivial"


def test_branches_of_the_default_wording():
    """to/not after 21 or 20; then the letter: three decisions."""
    branches = label_branches(tuple(explanations().items()))
    assert [b.prefix for b in branches] == [(20,), (20, 21, 22), (20, 23, 21, 24)]
    assert branches[0].tokens == (21, 23) and branches[0].leads_to == (1, 2)
    assert branches[1].tokens == LETTER_IDS and branches[1].leads_to[1] == Explanation(True, "B")


def test_an_explanation_that_is_a_prefix_of_another_is_refused():
    with pytest.raises(ValueError, match="end-of-turn"):
        label_branches(((Explanation(False, "A"), (20, 9)), (Explanation(False, "B"), (20, 9, END))))


@pytest.mark.parametrize("tied", [False, True])
def test_placeholder_gives_every_weight_a_gradient_of_zero(tied):
    """A weight without one would not be reduced on this rank, and the others would wait."""
    module = TreeModel(make_model(tied=tied))
    none = ReferenceRows(torch.zeros(0, 32), module.output_head)
    out = module(placeholder(), Objective(none, loss_scales(5, 4, 1.0, 2)))
    out.loss.backward()
    assert out.loss.item() == 0
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all(), name
