"""Attention over packed trees: the dense mask and the block mask by hand, and FlexAttention equal to SDPA.

FlexAttention has no backward on a CPU; its gradients are compared on a GPU (tests/gpu/test_flex_attention.py).
"""

import numpy as np
import pytest
import torch
from learner_helpers import make_cases, make_config, make_labels, make_model
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_mask
from transformers import GPT2Config, GPT2LMHeadModel

from introspect_ray.errors import UserError
from introspect_ray.policy import BUNDLED, load_model
from introspect_ray.training.attention import (
    FLEX_MIN_LENGTH,
    attention_rows,
    choose_attention,
    tree_block_mask,
    tree_mask,
)
from introspect_ray.training.fsdp import build_module
from introspect_ray.training.model import TreeModel
from introspect_ray.training.packing import pack, placeholder
from introspect_ray.training.prompt_tree import ONE_TOKEN, build_tree

# Two trees in a row of seven tokens: 0 is the parent of 1 and 3, 1 of 2; 4 is the parent of 5; 6 is padding.
ENDS = [4, 3, 3, 4, 6, 6, 7]
VISIBLE = [
    [1, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 0],
    [1, 0, 0, 1, 0, 0, 0],
    [0, 0, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0, 0, 1],
]


def batches(count, stem, budget):
    cases = make_cases(count, seed=count, stem=stem)
    trees = [
        build_tree(case, label.explanation, ONE_TOKEN) for case, label in zip(cases, make_labels(cases), strict=True)
    ]
    return [*pack(trees, budget), placeholder()]


def test_both_masks_by_hand():
    """The second row, one chain of seven tokens, is causal: each row has a mask of its own."""
    end_RT = torch.tensor([ENDS, [7] * 7])
    expected = torch.stack([torch.tensor(VISIBLE), torch.ones(7, 7, dtype=torch.int64).tril()]).bool().unsqueeze(1)
    assert torch.equal(tree_mask(end_RT, torch.float32), torch.zeros(2, 1, 7, 7).masked_fill(~expected, -torch.inf))
    mask = tree_block_mask(end_RT)
    assert mask.shape == (2, 1, 7, 7)
    assert torch.equal(create_mask(mask.mask_mod, 2, 1, 7, 7, "cpu"), expected)


def test_blocks_without_any_attention_are_left_out():
    """Chains of 260 and 140 tokens in four blocks of 128.

    All of 128...255 attend to 0...127: a full block. In the third block, 256...259 attend to the first two blocks. The
    last block, 384...399 of the second chain, attends to 260...399 only.
    """
    mask = tree_block_mask(torch.tensor([[260] * 260 + [400] * 140]))
    assert mask.to_dense()[0, 0].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]]
    assert mask.full_kv_num_blocks[0, 0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("budget", [1, 200, 2000])
def test_block_mask_equals_the_dense_mask(budget):
    for batch in batches(9, (5, 90), budget):
        end_RT = torch.from_numpy(batch.end_RT)
        rows, length = end_RT.shape
        dense = tree_mask(end_RT, torch.float32).isfinite()
        assert torch.equal(create_mask(tree_block_mask(end_RT).mask_mod, rows, 1, length, length, "cpu"), dense)


def test_short_rows_are_padded_for_flex_only():
    (batch, _) = batches(2, (5, 6), 1000)
    same = attention_rows(batch, "sdpa")
    assert all(a is b for a, b in zip(same, (batch.tokens_RT, batch.positions_RT, batch.end_RT), strict=True))
    padded = attention_rows(batch, "flex_attention")
    rows, length = batch.tokens_RT.shape
    assert all(array.shape == (rows, FLEX_MIN_LENGTH) for array in padded)
    assert all(np.array_equal(a[:, :length], b) for a, b in zip(padded, same, strict=True))
    assert padded[2][0, length:].tolist() == list(range(length + 1, FLEX_MIN_LENGTH + 1))  # its own only descendant


@pytest.mark.parametrize("kind", ["qwen3", "llama", "organism"])
def test_flex_equals_sdpa(kind):
    """Not compiled, since no one trains with the CPU kernel. Rows below and above one block, one row and many."""
    model = load_model(str(BUNDLED[kind]), torch.float32) if kind == "organism" else make_model(kind).train()
    module = TreeModel(model)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for batch in [*batches(9, (5, 90), 1), *batches(9, (60, 110), 2000)]:
            logits = []
            for attention in ("sdpa", "flex_attention"):
                model.set_attn_implementation(attention)
                logits.append(module.output_head.logits(module.hidden(batch)))
            torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, -1])
def test_few_compilations_serve_all_shapes(order):
    """One for the first shape, one for several rows, one for a single row. Without padding of short rows it is four.

    The backend only traces, so no compiler is needed.
    """
    model = make_model()
    model.set_attn_implementation("flex_attention")
    counters.clear()
    torch._dynamo.reset()
    shapes = ((2, 110, 400), (9, 90, 300), (9, 110, 2000), (3, 40, 1), (1, 20, 1), (5, 60, 90), (6, 30, 400))
    with torch.no_grad(), torch.compiler.set_stance("default", force_backend="eager"):
        for count, longest, budget in shapes[::order]:
            for batch in batches(count, (5, longest), budget):
                TreeModel(model).hidden(batch)
    assert 0 < counters["stats"]["unique_graphs"] <= 3


def test_auto_depends_on_the_device():
    assert choose_attention("auto", "cpu") == choose_attention("sdpa", "cuda:0") == "sdpa"
    assert choose_attention("auto", "cuda:1") == choose_attention("flex", "cuda") == "flex_attention"


def test_the_policy_is_loaded_with_the_chosen_attention():
    for train, loaded in (({}, "sdpa"), ({"use_gpu": True, "attention": "flex"}, "flex_attention")):
        module, _ = build_module(make_config(train=train), str(BUNDLED["organism"]), torch.device("cpu"), 1, 0)
        assert module.causal_lm.get_decoder().config._attn_implementation == loaded


def test_a_policy_without_flex_attention_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=61)).save_pretrained(tmp_path)
    load_model(str(tmp_path))
    with pytest.raises(UserError, match=r"flex_attention.*train\.attention=sdpa"):
        load_model(str(tmp_path), attention="flex_attention")
