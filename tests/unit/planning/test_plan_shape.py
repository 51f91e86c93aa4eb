"""Parameters, FLOPs and activation bytes from a config, against the models that transformers builds from it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from introspect_ray.errors import UserError
from introspect_ray.planning.memory import layer_activation_bytes
from introspect_ray.planning.model_shape import TABLE, read_shape, shape_from_config
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


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct"])
def test_parameters_of_a_known_model_built_without_weights(name):
    row = json.loads(TABLE.read_text())[name]
    config_class, model_class = KINDS[row["model_type"]]
    with torch.device("meta"):
        model = model_class(config_class(**{k: v for k, v in row.items() if k != "model_type"}))
    assert read_shape(name).parameters == sum(p.numel() for p in model.parameters())  # parameters(): tied ones once


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}, {"head_dim": 32}])
def test_parameters_of_variants(kind, changes):
    config, model = built(kind, **changes)
    assert shape_from_config("tiny", config.to_dict()).parameters == sum(p.numel() for p in model.parameters())


def test_the_organism_matches_its_weights():
    with safe_open(BUNDLED["organism"] / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 (no mapping)
    assert read_shape("organism").parameters == stored


def test_lora_parameters_match_peft():
    config, model = built("qwen3", device="cpu")
    adapted = add_lora(model, 4)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape_from_config("tiny", config.to_dict()).lora_parameters(4) == trained


def test_forward_flops_match_torchs_count():
    """torch counts 2 a multiply-add of every matrix product: the linear maps, QKᵀ and AV over all pairs, the head."""
    config, model = built("qwen3", device="cpu", head_dim=16)
    model.set_attn_implementation("eager")  # torch has no formula for the CPU's fused attention
    shape = shape_from_config("tiny", config.to_dict())
    tokens = 24
    mask = torch.zeros(1, 1, tokens, tokens)  # a dense mask, as the tree's: no causal halving
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, tokens, dtype=torch.int64), attention_mask=mask, use_cache=False)
    expected = shape.body_flops(tokens) + shape.head_flops(tokens) + shape.attention_flops(tokens**2)
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
    formula = 3 * layer_activation_bytes(shape_from_config("tiny", config.to_dict()), 2) * tokens
    assert saved(4) - saved(1) == pytest.approx(formula, rel=0.10)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({**TINY, "model_type": "llama", "vocab_size": None}, "vocab_size"),
    ],
)
def test_unknown_architectures_are_refused(config, says):
    with pytest.raises(UserError, match=says):
        shape_from_config("x", config)


def test_a_config_file_and_a_folder_are_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**TINY, "model_type": "llama"}))
    assert read_shape(str(path)).parameters == read_shape(str(tmp_path)).parameters > 0
    path.write_text("{not json")
    with pytest.raises(UserError, match="not valid JSON"):
        read_shape(str(path))
    with pytest.raises(UserError, match="nor is it in the table"):
        read_shape("./nowhere")
