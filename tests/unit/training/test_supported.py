"""Policies that packed trees would train wrongly are refused, by their config or by their logits."""

import pytest
import torch
from learner_helpers import make_cases, make_model

from introspect_ray.errors import UserError
from introspect_ray.training.model import TreeModel
from introspect_ray.training.supported import check_architecture, check_tree_forward

CASE = make_cases(1)[0]


def config(**values):
    made = make_model("llama").config
    for key, value in values.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"sliding_window": 16}, "window"),
        ({"sliding_window": 16, "use_sliding_window": False, "layer_types": ["sliding_attention"] * 2}, "window"),
        ({"attention_chunk_size": 16, "layer_types": ["full_attention", "chunked_attention"]}, "chunk"),
    ],
)
def test_a_sequence_beyond_the_reach_of_attention_is_refused(values, what):
    check_architecture(config(**values), 16, "sdpa")
    with pytest.raises(UserError, match=rf"17 tokens.*{what} of 16"):
        check_architecture(config(**values), 17, "sdpa")


def test_an_unused_window_is_no_limit():
    check_architecture(config(sliding_window=16, use_sliding_window=False), 1000, "sdpa")
    check_architecture(config(attention_chunk_size=16, layer_types=["full_attention"] * 2), 1000, "sdpa")


def test_layers_other_than_attention_are_refused():
    kinds = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
    with pytest.raises(UserError, match=r"linear_attention \(3 of 4\)"):
        check_architecture(config(layer_types=kinds), 5, "flex_attention")


def test_capped_attention_needs_flex():
    capped = config(attn_logit_softcapping=50.0)
    check_architecture(capped, 5, "flex_attention")
    with pytest.raises(UserError, match=r"at 50, .*train.attention=flex"):
        check_architecture(capped, 5, "sdpa")


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_trees_equal_its_sequences_passes(kind, dtype):
    check_tree_forward(TreeModel(make_model(kind).to(dtype), dtype), CASE)


def test_an_unknown_scaling_of_the_logits_is_refused():
    """HyperCLOVAX, for example, multiplies by the factor that Granite divides by."""
    module = TreeModel(make_model("qwen3"))
    module.scaling = {"divide": 1.1}
    with pytest.raises(UserError, match=r"differ by .* of its architecture \(Qwen3ForCausalLM\)"):
        check_tree_forward(module, CASE)


def test_a_state_that_flows_between_branches_is_refused():
    """A convolution over the row, as in layers other than attention: x's last token flows into the branch of x∖C."""
    model = make_model("llama")
    model.model.layers[0].register_forward_hook(lambda _, __, out: out + torch.nn.functional.pad(out, (0, 0, 1, -1)))
    with pytest.raises(UserError, match="packed as a tree differ"):
        check_tree_forward(TreeModel(model), CASE)
