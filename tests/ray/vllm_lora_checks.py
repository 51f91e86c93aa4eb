"""A LoRA adapter on real vLLM, run by test_vllm_engine.py in a process of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_tiny import EOS, assert_serves, peft_adapter, reference_logprobs, state
from vllm_engine_checks import CASES, PROBE, Served, assert_delivery

from introspect_ray.engines.protocol import WeightUpdate


class TestLora(Served):
    """Only the adapter moves; each version is a new adapter to vLLM."""

    method = "lora"

    def test_version_0_is_the_base_policy(self, engine, policy):
        assert_serves(engine, CASES, lambda prompts: reference_logprobs(policy, state(policy), prompts))

    def test_each_version_equals_the_peft_forward(self, engine, policy):
        seen = []
        for seed in (1, 2, 1):
            tensors, config, expected = peft_adapter(policy, seed, rank=4)
            update = WeightUpdate(engine.weight_version + 1, "adapter", tensors, PROBE, config)
            delivery = engine.load_weights(update)
            assert_delivery(delivery, update, expected)
            assert delivery.bytes < 0.2 * sum(t.numel() * t.element_size() for t in state(policy).values())
            seen.append([replace(p, weight_version=0) for p in assert_serves(engine, CASES, expected)])
        assert seen[0] != seen[1]
        assert seen[0] == seen[2]

    def test_generate_uses_the_adapter(self, engine, policy):
        tensors, config, expected = peft_adapter(policy, 3, rank=4)
        engine.load_weights(WeightUpdate(engine.weight_version + 1, "adapter", tensors, PROBE, config))
        prompts = [case.prompt for case in CASES[:4]]
        first = [tokens[:1] for tokens in engine.generate(prompts, 1)]
        assert first == [(t,) if t != EOS else () for t in expected(prompts).argmax(-1).tolist()]

    def test_mismatch_is_refused_and_the_old_version_still_served(self, engine, policy):
        before, version = engine.label_pairs(CASES), engine.weight_version
        tensors, config, _ = peft_adapter(policy, 4, rank=4)
        name = sorted(tensors)[0]
        big, big_config, _ = peft_adapter(policy, 4, rank=8)
        for message, bad, bad_config in (
            ("is missing", {k: v for k, v in tensors.items() if k != name}, config),
            (r"has shape \[9, 9\]", tensors | {name: torch.ones(9, 9)}, config),
            ("adapter's rank 8 exceeds the engine's 4", big, big_config),
            ("match no linear layer", tensors, config | {"target_modules": ["nothing"]}),
        ):
            with pytest.raises(ValueError, match=message):
                engine.load_weights(WeightUpdate(version + 1, "adapter", bad, PROBE, bad_config))
        assert engine.label_pairs(CASES) == before

    def test_old_adapters_leave_nothing_behind(self, engine, policy):
        """One adapter in vLLM, one folder on disk; none after close."""
        folder = Path(engine._adapter_dir.name)
        assert engine._engine.list_loras() == {engine._adapter.lora_int_id}
        engine.close()
        assert not folder.exists()
