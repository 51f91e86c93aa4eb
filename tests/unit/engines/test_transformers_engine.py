"""TransformersEngine against single unpadded forwards of the weights that it should serve."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from engine_tiny import make_cases, peft_adapter, reference_greedy, reference_logprobs, save_policy, state

from introspect_ray.config import RolloutConfig
from introspect_ray.engines import make_engine
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.engines.protocol import WeightUpdate

CASES = make_cases(9)
ROLLOUT = RolloutConfig(engine="transformers")


def start(policy, method="full"):
    return make_engine(ROLLOUT, policy, max_model_len=128, method=method, lora_rank=4)


def assert_serves(engine, expected):
    pairs = engine.label_pairs(CASES)
    for side, prompts in (("cued", [c.prompt for c in CASES]), ("ablated", [c.ablated for c in CASES])):
        for case, pair, row in zip(CASES, pairs, expected(prompts), strict=True):
            want = row[list(case.label_ids)]
            torch.testing.assert_close(torch.tensor(getattr(pair, f"{side}_logprobs")), want, atol=1e-4, rtol=0)
            assert getattr(pair, side) == case.labels[int(want.argmax())]
            assert getattr(pair, f"{side}_off_format") == (int(row.argmax()) not in case.label_ids)
            assert (pair.case_id, pair.weight_version) == (case.case_id, engine.weight_version)
    return pairs


@pytest.fixture(params=[("qwen3", True), ("llama", False)], ids=str)
def policy(request, tmp_path):
    return save_policy(tmp_path, *request.param)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_full_update_serves_the_new_weights_and_back(tmp_path, family, tied):
    """Prompts of 43 to 53 tokens need left padding. After a second update the old answers are back, bit for bit."""
    policy = save_policy(tmp_path, family, tied)
    engine = start(policy)
    old, new = state(policy), state(policy, seed=1, scale=0.1)
    before = assert_serves(engine, lambda prompts: reference_logprobs(policy, old, prompts))
    delivery = engine.load_weights(WeightUpdate(1, "full", new, CASES[0]))
    after = assert_serves(engine, lambda prompts: reference_logprobs(policy, new, prompts))
    assert delivery.probe == pytest.approx(after[0].cued_logprobs + after[0].ablated_logprobs, abs=1e-4)
    assert (delivery.version, delivery.fingerprints) == (1, fingerprints(new))
    assert delivery.bytes == sum(t.numel() * 4 for t in new.values())
    assert before[0].cued_logprobs[0] != pytest.approx(after[0].cued_logprobs[0], abs=0.05)
    engine.load_weights(WeightUpdate(2, "full", old, CASES[0]))
    assert [replace(p, weight_version=0) for p in engine.label_pairs(CASES)] == before


def test_generate_is_plain_greedy(policy):
    prompts = [case.prompt for case in make_cases(12)]
    want = reference_greedy(policy, state(policy), prompts, 24)
    assert start(policy).generate(prompts, 24) == want
    assert {len(tokens) == 24 for tokens in want} == {True, False}  # some end before 24 tokens, some do not


def test_each_adapter_version_equals_the_peft_forward(policy):
    engine = start(policy, method="lora")
    assert_serves(engine, lambda prompts: reference_logprobs(policy, state(policy), prompts))
    pairs = []
    for version, seed in enumerate((1, 2, 1), start=1):
        tensors, config, expected = peft_adapter(policy, seed, rank=4)
        delivery = engine.load_weights(WeightUpdate(version, "adapter", tensors, CASES[0], config))
        assert delivery.bytes < 0.2 * sum(t.numel() * 4 for t in state(policy).values())
        pairs.append([replace(p, weight_version=0) for p in assert_serves(engine, expected)])
    assert pairs[0] != pairs[1]
    assert pairs[0] == pairs[2]


def test_refused_updates_change_nothing(tmp_path):
    policy = save_policy(tmp_path)
    engine = start(policy)
    before, new = engine.label_pairs(CASES), state(policy, seed=1, scale=0.1)
    del new["lm_head.weight"]
    with pytest.raises(ValueError, match=r"lm_head.weight \[64, 64\] is missing \(send a tied head too"):
        engine.load_weights(WeightUpdate(1, "full", new, CASES[0]))
    with pytest.raises(ValueError, match=r"kind 'adapter'"):
        engine.load_weights(WeightUpdate(1, "adapter", {}, CASES[0], {}))
    assert engine.label_pairs(CASES) == before


def test_a_failed_update_makes_the_engine_unusable(tmp_path, monkeypatch):
    policy = save_policy(tmp_path)
    engine = start(policy)

    def fail(tensors):
        raise OSError("link down")

    monkeypatch.setattr(engine._model, "load_state_dict", fail)
    with pytest.raises(OSError, match="link down"):
        engine.load_weights(WeightUpdate(1, "full", state(policy), CASES[0]))
    for call in (lambda: engine.label_pairs(CASES), lambda: engine.generate([(20, 21)], 1)):
        with pytest.raises(RuntimeError, match=r"link down.*Replace the engine"):
            call()


def test_closed_engine_raises(tmp_path):
    engine = start(save_policy(tmp_path))
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.label_pairs(CASES)
