"""Packing keeps every tree, the token budget and short rows; the label-trie walk reads the right nodes."""

import random

import numpy as np
import pytest
import torch
from learner_helpers import LETTER_IDS, LETTERS, make_cases, make_model, make_pairs, make_response_cases

from introspect_ray.cases.label_trie import walk_explanations
from introspect_ray.records import AuxiliaryText, Explanation
from introspect_ray.training.attention import tree_mask
from introspect_ray.training.chunked_loss import Objective, ReferenceRows
from introspect_ray.training.loss import Counts, loss_scales
from introspect_ray.training.model import TreeModel
from introspect_ray.training.packing import pack, placeholder
from introspect_ray.training.prompt_tree import ONE_TOKEN, build_tree, response_paths, text_tree


def ancestors_and_self(tree, node):
    path = []
    while node >= 0:
        path.append(node)
        node = tree.parent[node]
    return path[::-1]


def test_a_packed_token_attends_to_its_ancestors_and_itself():
    trees = [build_tree(case, Explanation(False, "A"), ONE_TOKEN) for case in make_cases(5)]
    (batch,) = pack(trees, 10_000)
    visible = tree_mask(torch.from_numpy(batch.end_RT), torch.float32)[:, 0].isfinite()
    assert visible.sum() == sum(len(ancestors_and_self(t, n)) for t in trees for n in range(len(t))) + (
        batch.tokens_RT.size - sum(map(len, trees))
    )
    starts = batch.outputs_N[:5] - [t.cued.kl_nodes[0] for t in batch.trees]
    flat = {tree.case_id: start for tree, start in zip(batch.trees, starts)}
    for tree in trees:
        row, at = divmod(int(flat[tree.case_id]), batch.tokens_RT.shape[1])
        for node in range(len(tree)):
            assert visible[row, at + node].nonzero()[:, 0].tolist() == [at + n for n in ancestors_and_self(tree, node)]


@pytest.mark.parametrize("budget", [1, 40, 100, 512, 100_000])
def test_pack_keeps_every_tree_and_the_budget(budget):
    rng = random.Random(0)
    trees = [build_tree(c, Explanation(False, "A"), ONE_TOKEN) for c in make_cases(60, stem=(2, 40))]
    rng.shuffle(trees)
    batches = pack(trees, budget)
    assert sorted(t.case_id for b in batches for t in b.trees) == sorted(t.case_id for t in trees)
    for batch in batches:
        assert batch.tokens_RT.size <= budget or len(batch.trees) == 1
        count = len(batch.trees)
        assert batch.sections == (2 * count, 0, len(batch.targets_K), 0, 3 * count)
    again = pack(trees, budget)
    assert all(np.array_equal(a.tokens_RT, b.tokens_RT) for a, b in zip(batches, again, strict=True))


def spelled(batch):
    """For each output row, the token sequence that its node stands for."""
    rows, length = batch.tokens_RT.shape
    row_of, nodes = np.divmod(batch.outputs_N, length)
    visible = [[(batch.end_RT[r, : n + 1] > n).nonzero()[0] for n in range(length)] for r in range(rows)]
    return [tuple(batch.tokens_RT[r][visible[r][n]].tolist()) for r, n in zip(row_of, nodes)]


def test_output_rows_come_in_the_order_of_their_sections():
    """Letters, a case with words, free text, and an auxiliary text.

    M0 answers "NTA" (14 15) on x of the second case and "YTA" (16 15) on x∖C; the label trie has inner nodes after (),
    14, 16 and 16 17. So 14 on x and 16 on x∖C are KL rows; the two others on either side are for reading alone. M0's
    free text on x∖C is 42 43, after which its end of turn is predicted.
    """
    cases = make_response_cases(3)
    m0 = make_pairs(cases)
    assert (m0["case-1"].cued, m0["case-1"].ablated, m0["case-2"].ablated_response) == ("NTA", "YTA", (42, 43))
    text = AuxiliaryText("t", (50, 51, 52, 53), (False, False, True, True))
    trees = [build_tree(c, Explanation(True, c.labels[0]), response_paths(c, m0[c.case_id])) for c in cases]
    (batch,) = pack([*trees, text_tree(text)], 10_000)
    by_id = {case.case_id: case for case in cases}
    placed = [by_id[tree.case_id] for tree in batch.trees]
    paths = {"case-1": ([(), (14,)], [(), (16,)]), "case-2": ([()], [(), (42,), (42, 43)])}
    kl, alone, reading = [], [], []
    for side, prompts in enumerate(([c.prompt for c in placed], [c.ablated for c in placed])):
        for case, prompt in zip(placed, prompts):
            on_path = paths.get(case.case_id, ([()], [()]))[side]
            trie = {"case-0": [()], "case-1": [(), (14,), (16,), (16, 17)], "case-2": []}[case.case_id]
            kl += [prompt + path for path in on_path]
            alone += [prompt + prefix for prefix in trie if prefix not in on_path]
            reading += [prompt + prefix for prefix in trie]
    targets = [case.question + case.explanations[tree.label] for case, tree in zip(placed, batch.trees)]
    before = [s[: len(c.question) + k] for c, s in zip(placed, targets) for k in range(len(s) - len(c.question))]
    rows = spelled(batch)
    assert batch.sections[:4] == (len(kl), len(alone), len(before), 2) and len(alone) == 4
    assert rows[: len(kl) + len(alone) + len(before) + 2] == [*kl, *alone, *before, (50, 51), (50, 51, 52)]
    assert batch.auxiliary_A.tolist() == [52, 53]
    assert [rows[row] for row in batch.label_rows_L] == reading
    children = {(): [14, 16], (14,): [15], (16,): [15, 17], (16, 17): [18]}
    wanted = []
    for prefix in reading:
        (case, prompt) = next((c, p) for c in placed for p in (c.prompt, c.ablated) if prefix[: len(p)] == p)
        letters = case.case_id == "case-0"
        wanted += [(prefix, t) for t in (LETTER_IDS if letters else children[prefix[len(prompt) :]])]
    assert [(rows[r], t) for r, t in zip(batch.label_rows_P, batch.label_tokens_P.tolist())] == wanted


def test_short_cases_do_not_make_long_rows():
    """In one row of 8,192 tokens, attention over 128 trees of about 30 tokens would cost 250 times as much."""
    trees = [build_tree(c, Explanation(False, "A"), ONE_TOKEN) for c in make_cases(128)]
    batches = pack(trees, 8192)
    assert max(b.tokens_RT.shape[1] for b in batches) <= 256
    assert sum(b.tokens_RT.size for b in batches) <= 1.15 * sum(map(len, trees))


def test_walk_equals_greedy_search_over_the_label_trie():
    model = make_model()
    module, cases = TreeModel(model), make_cases(40)
    trees = [build_tree(case, Explanation(i % 2 == 0, LETTERS[i % 4]), ONE_TOKEN) for i, case in enumerate(cases)]
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
    out = module(placeholder(), Objective(none, loss_scales(Counts(2, 5, 4), 1.0, 2)))
    out.loss.backward()
    assert out.loss.item() == 0
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all(), name
