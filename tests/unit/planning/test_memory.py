"""Memory of trainers, engines and the reference task, and what is stored, by hand."""

from __future__ import annotations

import pytest
from learner_helpers import make_cases, make_config, make_labels, make_model, make_pairs
from planning_helpers import CASE, HEAD, INSIDE, LAYER, ROOT, SHAPE, A, P, config
from safetensors import safe_open

from introspect_ray.planning.memory import engine_memory, run_bytes, trainer_memory
from introspect_ray.planning.model_shape import read_shape
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference


def test_trainer_memory_by_hand():
    """Sharded over 4: 16 bytes per parameter. Not sharded: the bfloat16 embedding and head with two layers, the
    gradients of the root and of a layer in bfloat16 and float32, M0's head."""
    memory = trainer_memory(SHAPE, CASE, config(), 4)
    assert memory.weights + memory.gradients + memory.adam == 16 * P / 4
    assert memory.gathered == 2 * (ROOT + 2 * LAYER) + 6 * (ROOT + LAYER)
    assert memory.m0_head == 2 * HEAD
    # 8 cases over 4 GPUs: two trees, each taken as the longest; 36 layer inputs and one layer's inside per token
    assert memory.activations == 2 * 1112 * (36 * 2 * 4096 + INSIDE)
    # two trees of 2 behaviour rows and 9 target rows; bfloat16 logits and their gradient, five float32 copies
    assert memory.logits == 2 * (2 + 9) * 151_936 * 24
    assert memory.total == pytest.approx(sum(list(vars(memory).values())[:-1]))


def test_activations_at_the_token_budget():
    """A micro-batch holds 16,384 tokens once a rank has 15 cases (14 of 1,112 are 15,568); under a budget below the
    longest tree it holds that one alone."""
    token = 36 * 2 * 4096 + INSIDE
    for cases, budget, tokens in ((14, 16384, 14 * 1112), (15, 16384, 16384), (300, 16384, 16384), (300, 512, 1112)):
        cfg = config(batch_size=cases, train__token_budget=budget)
        assert trainer_memory(SHAPE, CASE, cfg, 1).activations == tokens * token


def test_without_checkpointing_every_layer_keeps_its_inside():
    cfg = config(train__activation_checkpointing="none")
    assert trainer_memory(SHAPE, CASE, cfg, 8).activations == 1112 * 36 * INSIDE


def test_logits_do_not_grow_beyond_a_chunk():
    """A chunk is 2^26 logits; 1,000 trees have 11,000 rows, of 151,936 logits each."""
    assert trainer_memory(SHAPE, CASE, config(batch_size=1000, train__token_budget=10**6), 1).logits == 2**26 * 24


def test_lora_trains_in_a_fraction():
    """The frozen base is bfloat16 and sharded; gradients of gathered weights there are none."""
    memory = trainer_memory(SHAPE, CASE, config(method="lora"), 2)
    adapter = 36 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288))
    assert memory.weights == (2 * P + 4 * adapter) / 2
    assert memory.adam == 8 * adapter / 2
    assert memory.gathered == 2 * (ROOT + 2 * LAYER)


def test_offloaded_memory_is_not_the_gpus():
    memory = trainer_memory(SHAPE, CASE, config(train__offload=True), 1)
    assert memory.adam == 8 * P
    assert memory.total == memory.gathered + memory.m0_head + memory.activations + memory.logits


def test_engine_memory_by_hand():
    """bfloat16 weights over two GPUs; a token's keys and values are 2 x 36 x 1024 x 2 bytes, half of it on each. Eight
    pairs are 16 sequences."""
    memory = engine_memory(SHAPE, CASE, config(batch_size=8, rollout__group_size=8), A, 2)
    assert memory.weights == P
    assert memory.cache == pytest.approx(73_728 * 16 * (177.6 + 9))
    assert memory.workspace == 2 * 8192 * (4 * 4096 + 12288 + 4096) + 256 * 151_936 * 10
    assert memory.room == pytest.approx(0.85 * 80e9) and memory.fits


def test_what_is_stored_and_sent_by_hand():
    """The reference: two hidden states for each of 10,532 cases, and the head. The task that computes it holds the
    policy and one layer's inside over a full micro-batch. A checkpoint has 12 bytes per trained parameter."""
    size = run_bytes(SHAPE, CASE, config())
    assert size.reference == 2 * (2 * 10_532 * 4096 + HEAD)
    assert size.reference_task == 2 * P + 16384 * INSIDE
    assert (size.checkpoint, size.policy, size.update) == (12 * P, 2 * P, 2 * P)
    lora = run_bytes(SHAPE, CASE, config(method="lora", train__reference="live"))
    assert (lora.reference, lora.reference_task) == (0, 0)
    assert lora.update == lora.policy == 2 * SHAPE.lora_parameters(32)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_files_have_the_planned_sizes(tmp_path, method):
    """Two widths of a tiny policy with a tied head: a checkpoint grows from one to the other as planned, within 1 kB
    (what it takes per tensor besides is the same). Tensors of a weight update and of the exported policy: exactly."""
    written, planned = [], []
    for hidden in (32, 128):
        policy, cases = str(tmp_path / f"model-{hidden}"), make_cases(4)
        make_model(hidden=hidden).save_pretrained(policy)
        cfg = make_config(method=method, lora_rank=4)
        reference = build_reference(policy, cases, None, str(tmp_path / "cache"))
        learner = Learner(cfg, policy, reference, {case.case_id: case for case in cases})
        learner.step(make_labels(cases), make_pairs(cases))
        folder = tmp_path / f"checkpoint-{hidden}"
        folder.mkdir()
        learner.save_checkpoint(str(folder)).result()
        written.append(sum(file.stat().st_size for file in folder.rglob("*")))
        size = run_bytes(read_shape(policy), CASE, cfg)
        planned.append(size.checkpoint)
        assert sum(tensor.nbytes for tensor in learner.weights().values()) == size.update
        learner.export(str(tmp_path / f"policy-{hidden}"))
        (file,) = (tmp_path / f"policy-{hidden}").glob("*.safetensors")
        with safe_open(file, "pt") as stored:
            assert sum(stored.get_tensor(key).nbytes for key in stored.keys()) == size.policy  # noqa: SIM118
    assert written[1] - written[0] == pytest.approx(planned[1] - planned[0], abs=1024)
