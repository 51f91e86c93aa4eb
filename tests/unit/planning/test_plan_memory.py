"""Memory of trainers, engines and the reference task, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planned import HEAD, INSIDE, SHAPE, WORK, A, P, config, plan

from introspect_ray.errors import UserError
from introspect_ray.planning.durations import sent_bytes
from introspect_ray.planning.memory import check_reference, engine_memory, logit_bytes, reference_bytes, trainer_memory
from introspect_ray.planning.report import as_text, memory_text


def test_trainer_memory_by_hand():
    """Sharded over 4: 16 bytes a parameter. Not sharded: the bfloat16 embedding and head with two layers, the gradients
    of the root and of a layer in bfloat16 and float32, M0's head."""
    memory = trainer_memory(SHAPE, WORK, config(), 4)
    assert memory.masters + memory.gradients + memory.adam == 16 * P / 4
    root = 2 * HEAD + 4096
    layer = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
    assert memory.gathered == 2 * (root + 2 * layer) + 6 * (root + layer)
    assert memory.reference == 2 * HEAD
    # 8 cases over 4 GPUs: two trees, each taken as the longest; 36 layer inputs and one layer's inside a token
    assert memory.activations == 2 * 1112 * (36 * 2 * 4096 + INSIDE)
    # a row of 16 bytes, 24 where there is a KL (x and x∖C)
    assert memory.logits == pytest.approx(2 * 151_936 * (2 * 24 + 9 * 16))


def test_activations_at_the_token_budget():
    """A micro-batch holds 16,384 tokens once a rank has 15 cases (14 of 1,112 are 15,568); under a budget below the
    longest tree it holds that one alone."""
    token = 36 * 2 * 4096 + INSIDE
    for cases, budget, tokens in ((14, 16384, 14 * 1112), (15, 16384, 16384), (300, 16384, 16384), (300, 512, 1112)):
        cfg = config(batch_size=cases, train__token_budget=budget)
        assert trainer_memory(SHAPE, WORK, cfg, 1).activations == tokens * token


def test_a_gathered_layers_gradient_is_for_full_training_only():
    lora = trainer_memory(SHAPE, WORK, config(method="lora"), 4)
    assert lora.gathered == 2 * (SHAPE.root + 2 * SHAPE.layer)


def test_the_reference_needs_the_whole_policy_on_one_gpu():
    """2 bytes a parameter and one layer's inside over a full batch of 16,384 tokens; nothing of it where it is live."""
    assert reference_bytes(SHAPE, WORK, config()) == (2 * P, 16384 * INSIDE)
    assert reference_bytes(SHAPE, WORK, config(method="lora", train__reference="live")) == (0, 0)
    need = (2 * P + 16384 * INSIDE) / 1e9  # 20.1 GB
    check_reference(SHAPE, WORK, config(), replace(A, memory_gb=need + 0.001))
    with pytest.raises(UserError, match=r"16\.4 GB of weights and 3\.7 GB.*or a smaller train\.token_budget"):
        check_reference(SHAPE, WORK, config(), replace(A, memory_gb=need - 0.001))


def test_a_policy_whose_reference_does_not_fit_trains_with_a_live_one():
    """Llama-3.1-70B is 141 GB in bfloat16: no GPU of 80 GB computes its reference, though three train its adapter."""
    given = ("--policy", "meta-llama/Llama-3.1-70B-Instruct", "--gpus", "64", "method=lora")
    with pytest.raises(UserError, match=r"141\.1 GB of weights.*train\.reference=live with method=lora$"):
        plan(*given)
    made = plan(*given, "train.reference=live")
    assert made.chosen.memory.reference == 0 and "M0's reference" not in as_text(made)


def test_logits_do_not_grow_beyond_a_chunk():
    """2^26 logits are 441 rows of 151,936: of 100 trees 200 behaviour rows and 241 of the 900 target rows, of 300
    trees 441 behaviour rows."""
    assert logit_bytes(SHAPE, WORK, 100, 2) == 151_936 * (200 * 24 + 241 * 16)
    assert logit_bytes(SHAPE, WORK, 300, 2) == logit_bytes(SHAPE, WORK, 10_000, 2) == 151_936 * 441 * 24


def test_a_policy_that_fits_by_offloading_alone():
    """16 x 8.19e9 bytes are 131 GB; on one GPU of 80 the rest fits."""
    given = ("--policy", "Qwen/Qwen3-8B", "--gpus", "2", "train.num_workers=1")
    with pytest.raises(UserError, match=r"train\.offload=true"):
        plan(*given)
    chosen = plan(*given, "train.offload=true")
    assert chosen.chosen.trainers == 1 and chosen.chosen.memory.adam == 0
    assert "131.1 GB each of 1" in memory_text(chosen.setting, chosen.chosen.cfg)


def test_lora_trains_in_a_fraction():
    memory = trainer_memory(SHAPE, WORK, config(method="lora"), 1)
    adapter = 36 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288))
    assert memory.masters == 2 * P + 4 * adapter
    assert memory.adam == 8 * adapter
    assert sent_bytes(SHAPE, config(method="lora")) == 2 * adapter


def test_engine_memory_by_hand():
    """bfloat16 weights over two GPUs; a token's keys and values are 2 x 36 x 1024 x 2 bytes, half of it on each."""
    memory = engine_memory(SHAPE, WORK, config(batch_size=8, rollout__group_size=8), A, 2)
    assert memory.weights == P
    assert memory.kv_needed == pytest.approx(73_728 * 16 * (177.6 + 9))
    assert memory.total == pytest.approx(0.85 * 80e9)
