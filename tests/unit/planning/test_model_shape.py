"""Parameters, FLOPs and activation bytes of a policy: published numbers, and what torch counts."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from introspect_ray.errors import UserError
from introspect_ray.planning.memory import layer_activation_bytes
from introspect_ray.planning.model_shape import read_shape, shape_of
from introspect_ray.policy import BUNDLED, add_lora

TINY = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
KINDS = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


def built(kind: str, device: str = "meta", **changes):
    config_class, model_class = KINDS[kind]
    config = config_class(**{**TINY, **changes}, attn_implementation="sdpa")
    with torch.device(device):
        return config, model_class(config)


@pytest.mark.parametrize(
    ("name", "published"),
    [  # published parameter counts, as remembered
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-14B", 14_768_307_200),
        ("Qwen/Qwen3-32B", 32_762_123_264),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
    ],
)
def test_parameters_of_published_models(name, published):
    assert read_shape(name).parameters == published


def test_the_organism_matches_its_weights():
    with safe_open(BUNDLED["organism"] / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 (no mapping)
    assert read_shape("organism").parameters == stored


def test_lora_parameters_match_peft():
    config, model = built("qwen3", device="cpu")
    shape = shape_of("tiny", config)
    adapted = add_lora(model, 4)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.lora_parameters(4) == trained


def test_forward_flops_match_torchs_count():
    """torch counts 2 per multiply-add of every matrix product: the linear maps, QKᵀ and AV over all pairs, the head."""
    config, model = built("qwen3", device="cpu", head_dim=16)
    model.set_attn_implementation("eager")  # torch has no formula for the CPU's fused attention
    shape = shape_of("tiny", config)
    tokens = 24
    mask = torch.zeros(1, 1, tokens, tokens)  # a dense mask, as the tree's: no causal halving
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, tokens, dtype=torch.int64), attention_mask=mask, use_cache=False)
    expected = shape.forward_flops(tokens) + shape.head_flops(tokens)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)  # rotary tables aside


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_kept_activations_match_what_autograd_saves(kind):
    """Bytes that autograd keeps in bfloat16 for three more layers and tokens, against the formula, within 10 %."""
    tokens = 256
    mask = torch.zeros(1, 1, tokens, tokens, dtype=torch.bfloat16)

    def saved(layers: int) -> int:
        _, model = built(kind, device="cpu", num_hidden_layers=layers, head_dim=16)
        model = model.to(torch.bfloat16).train()
        own = {p.data_ptr() for p in model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own and storage.data_ptr() != mask.data_ptr():
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            body = model.get_decoder()
            out = body(input_ids=torch.zeros(1, tokens, dtype=torch.int64), attention_mask=mask, use_cache=False)
        del out
        return sum(kept.values())

    config, _ = built(kind, head_dim=16)
    formula = 3 * layer_activation_bytes(shape_of("tiny", config), 2) * tokens
    assert saved(4) - saved(1) == pytest.approx(formula, rel=0.10)


def test_weights_outside_linear_maps_are_refused():
    """Of the experts of a mixture a token uses some only."""
    with pytest.raises(UserError, match="MixtralForCausalLM has layers with other weights"):
        shape_of("x", MixtralConfig(**TINY, num_local_experts=2))


def test_a_config_file_and_a_folder_are_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**TINY, "model_type": "llama"}))
    assert read_shape(str(path)).parameters == read_shape(str(tmp_path)).parameters > 0
    path.write_text("{not json")
    with pytest.raises(UserError, match="config cannot be read"):
        read_shape(str(path))
