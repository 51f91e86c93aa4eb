"""Packing keeps every tree, the token budget and short rows; the label-trie walk reads the right nodes."""

import random

import numpy as np
import pytest
import torch
from learner_helpers import LETTERS, make_cases, make_model

from introspect_ray.cases.label_trie import walk_explanations
from introspect_ray.records import Explanation
from introspect_ray.training.attention import tree_mask
from introspect_ray.training.chunked_loss import Objective, ReferenceRows
from introspect_ray.training.loss import loss_scales
from introspect_ray.training.model import TreeModel
from introspect_ray.training.packing import pack, placeholder
from introspect_ray.training.prompt_tree import build_tree


def ancestors_and_self(tree, node):
    path = []
    while node >= 0:
        path.append(node)
        node = tree.parent[node]
    return path[::-1]


def test_a_packed_token_attends_to_its_ancestors_and_itself():
    trees = [build_tree(case, Explanation(False, "A")) for case in make_cases(5)]
    (batch,) = pack(trees, 10_000)
    visible = tree_mask(torch.from_numpy(batch.end_RT), torch.float32)[:, 0].isfinite()
    assert visible.sum() == sum(len(ancestors_and_self(t, n)) for t in trees for n in range(len(t))) + (
        batch.tokens_RT.size - sum(map(len, trees))
    )
    starts = batch.outputs_N[:5] - [t.cued for t in batch.trees]
    flat = {tree.case_id: start for tree, start in zip(batch.trees, starts)}
    for tree in trees:
        row, at = divmod(int(flat[tree.case_id]), batch.tokens_RT.shape[1])
        for node in range(len(tree)):
            assert visible[row, at + node].nonzero()[:, 0].tolist() == [at + n for n in ancestors_and_self(tree, node)]


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
    """In one row of 8,192 tokens, attention over 128 trees of about 30 tokens would cost 250 times as much."""
    trees = [build_tree(c, Explanation(False, "A")) for c in make_cases(128)]
    batches = pack(trees, 8192)
    assert max(b.tokens_RT.shape[1] for b in batches) <= 256
    assert sum(b.tokens_RT.size for b in batches) <= 1.15 * sum(map(len, trees))


def test_walk_equals_greedy_search_over_the_label_trie():
    model = make_model()
    module, cases = TreeModel(model), make_cases(40)
    trees = [build_tree(case, Explanation(i % 2 == 0, LETTERS[i % 4])) for i, case in enumerate(cases)]
    found, expected = {}, {}
    with torch.no_grad():
        for batch in pack(trees, 300):
            walk = module(batch).walk_P.tolist()
            explanations = walk_explanations([tree.branches for tree in batch.trees], walk)
            found |= dict(zip([tree.case_id for tree in batch.trees], explanations, strict=True))
        for case in cases:
            left, prefix = dict(case.explanations), ()
            while len(left) > 1:
                allowed = sorted({tokens[len(prefix)] for tokens in left.values()})
                logits = model(input_ids=torch.tensor([case.question + prefix])).logits[0, -1]
                prefix += (max(allowed, key=lambda token: logits[token].item()),)
                left = {e: t for e, t in left.items() if t[: len(prefix)] == prefix}
            (expected[case.case_id],) = left
    assert found == expected
    assert len(set(found.values())) > 2, "the walk is trivial"


@pytest.mark.parametrize("tied", [False, True])
def test_placeholder_gives_every_weight_a_gradient_of_zero(tied):
    """FSDP2 would not reduce a weight without a gradient on this rank, and the other ranks would wait."""
    module = TreeModel(make_model(tied=tied))
    none = ReferenceRows(torch.zeros(0, 32), module.output_head)
    out = module(placeholder(), Objective(none, loss_scales(5, 4, 1.0, 2)))
    out.loss.backward()
    assert out.loss.item() == 0
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all(), name
