"""What all engines share: end-of-turn ids, refusals, the choice of the engine."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from engine_tiny import make_cases, save_policy

from introspect_ray.config import RolloutConfig
from introspect_ray.engines import checks, make_engine
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.errors import UserError

CASE = make_cases(1)[0]  # labels A..D, ids 10..13


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config": {"eos_token_id": 2}}, (2,)),
        ({"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [9, 2]}}, (2, 9)),
        (
            {  # a chat tokenizer ends turns with a token that config.json does not name
                "config": {"eos_token_id": 2},
                "tokenizer_config": {"eos_token": {"content": "<|im_end|>"}},
                "tokenizer": {"added_tokens": [{"id": 7, "content": "<|im_end|>"}, {"id": 8, "content": "<pad>"}]},
            },
            (2, 7),
        ),
        ({"tokenizer_config": {"eos_token": "</s>", "added_tokens_decoder": {"4": {"content": "</s>"}}}}, (4,)),
    ],
)
def test_eos_ids_come_from_all_files(tmp_path, files, expected):
    assert checks.eos_token_ids(write(tmp_path, **files)) == expected


def test_a_policy_without_eos_is_refused(tmp_path):
    with pytest.raises(UserError, match="no end-of-turn token: set eos_token_id"):
        checks.eos_token_ids(write(tmp_path, config={"eos_token_id": None}))


@pytest.mark.parametrize("tied", [True, False])
def test_policy_shapes_name_the_head_also_when_tied(tmp_path, tied):
    shapes = checks.policy_shapes(save_policy(tmp_path, tied=tied))
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (64, 64)
    assert len(shapes) == 25  # embedding, head, norm and eleven tensors in each of two layers


def test_policy_shapes_need_safetensors(tmp_path):
    with pytest.raises(UserError, match=r"no \*.safetensors: save it with save_pretrained"):
        checks.policy_shapes(str(tmp_path))


def test_adapter_targets_follow_peft():
    """PEFT matches a list with the last parts of a name, and a string as a regular expression over the whole name."""
    base = {
        "model.layers.0.mlp.up_proj.weight": (6, 4),
        "model.layers.0.mlp.group_proj.weight": (6, 4),
        "model.norm.weight": (4,),
    }
    tensors = {
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(2, 4),
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": torch.zeros(6, 2),
    }
    for targets in (["up_proj"], r".*\.up_proj"):
        checks.check_adapter(WeightUpdate(1, "adapter", tensors, CASE, {"r": 2, "target_modules": targets}), base, 2)
    with pytest.raises(ValueError, match=r"group_proj.lora_A.weight \[2, 4\] is missing"):
        checks.check_adapter(
            WeightUpdate(1, "adapter", tensors, CASE, {"r": 2, "target_modules": r".*up_proj"}), base, 2
        )


@pytest.mark.parametrize(("length", "fits"), [(0, False), (1, True), (14, True), (15, False)])
def test_prompts_leave_room_for_new_tokens(length, fits):
    """max_model_len 16 and two new tokens: 14 fit."""
    if fits:
        checks.check_prompts([(3,) * length], 2, 16)
    else:
        with pytest.raises(ValueError, match=f"prompt 0 has {length} tokens"):
            checks.check_prompts([(3,) * length], 2, 16)


@pytest.mark.parametrize(("engine", "key"), [("vllm", "engine"), ("learner", "serving_engine")])
def test_missing_vllm_names_the_remedy(monkeypatch, engine, key):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"^rollout.{key}=vllm.*not installed.*rollout.{key}=transformers"):
        make_engine(RolloutConfig(engine=engine), "nowhere", max_model_len=64)


def test_more_next_tokens_than_vllm_returns_logprobs_for_are_refused():
    checks.check_vllm_limits([range(128), range(2)])
    with pytest.raises(UserError, match=r"129 different tokens.*at most 128"):
        checks.check_vllm_limits([range(2), range(129)])
