"""FLOPs and seconds of the parts of a step, by hand."""

from __future__ import annotations

import pytest
from planned import HEAD, SHAPE, WORK, A, P, config

from introspect_ray.planning.durations import durations, label_own_seconds, sync_seconds, update_seconds
from introspect_ray.planning.memory import kept_bytes, trainer_memory
from introspect_ray.planning.work import pair_flops, step_flops


def test_a_live_reference_is_one_forward_more():
    """8 GPUs, a case each: a third gather of 2 bytes beside the adapter's float32 gradients, and the body's FLOPs."""
    cached, live = (config(method="lora", train__reference=how) for how in ("cache", "live"))
    adapter = SHAPE.lora_parameters(32)
    links = (3 * 2 * P + 4 * adapter) * 7 / 8 / (0.75 * 450e9)
    seconds = update_seconds(SHAPE, WORK, live, A, 8)
    assert seconds == pytest.approx(links + 40 * adapter / 8 / 3.35e12)
    more = step_flops(SHAPE, WORK, live).reference - step_flops(SHAPE, WORK, cached).reference
    assert more == pytest.approx(step_flops(SHAPE, WORK, cached).recompute)


def test_offloading_by_hand():
    """16 bytes a parameter leave the GPUs, the rest stays. A micro-batch copies 4 bytes in for each of two gathers and
    4 out; at one case a GPU that takes longest. AdamW's 40 bytes a parameter then go through host memory."""
    kept, offloaded = (trainer_memory(SHAPE, WORK, config(train__offload=x), 8) for x in (False, True))
    assert offloaded.masters == offloaded.gradients == offloaded.adam == 0
    assert kept.total - offloaded.total == pytest.approx(16 * P / 8)
    assert sum(kept_bytes(SHAPE, config(train__offload=True), 8)) == 16 * P / 8
    seconds = 12 * P / 8 / 40e9 + 40 * P / 8 / 20e9
    assert update_seconds(SHAPE, WORK, config(train__offload=True), A, 8) == pytest.approx(seconds)
    # LoRA: the frozen base, 2 bytes a parameter, is copied too
    masters, gradients, adam = kept_bytes(SHAPE, config(method="lora", train__offload=True), 1)
    adapter = SHAPE.lora_parameters(32)
    assert (masters, gradients, adam) == (2 * P + 4 * adapter, 4 * adapter, 8 * adapter)


def test_flops_of_a_step_by_hand():
    """8 cases of 199.6 tree tokens: 2 FLOPs a weight and token, attention over all pairs, 14 rows of logits."""
    body = 8 * (2 * 36 * SHAPE.layer_matrices * 199.6 + 4 * 36 * 4096 * 49_725)
    rows = 8 * 2 * HEAD
    flops = step_flops(SHAPE, WORK, config())
    assert flops.forward == pytest.approx(body + 14 * rows)
    assert flops.backward == pytest.approx(2 * (body + 11 * rows))
    assert flops.recompute == pytest.approx(body)
    assert flops.rollout == pytest.approx(8 * pair_flops(SHAPE, WORK))
    assert WORK.rollout_tokens == pytest.approx(162.6 + 157.6 - 144)  # 151.6 shared tokens: nine blocks of 16
    assert step_flops(SHAPE, WORK, config(supervision__rule="fixed")).rollout == 0


def test_sync_by_hand():
    """16.38 GB by the host: the fingerprints, the copies and the object store; from GPU to GPU over NVLink, hashed once
    and, on the engine, read and written. Either way four trainers first gather 4 bytes a parameter, and 2 more for the
    probe's forward (longer than 36 layers' launches); an engine's probe is two prompts and 36 launches."""
    cfg, size, link = config(), 2 * P, 0.75 * 450e9
    gathers = (4 + 2) * P * 3 / 4 / link
    probe = 36 * 8e-4 + 2 * 5e-4
    copies = size / 1e9 * (1 / 6 + 1 / 6.6 + 1 / 2)
    assert sync_seconds(SHAPE, WORK, cfg, A, 4, 1, "host") == pytest.approx((gathers + copies, copies + probe))
    memory = size * (1 + 2) / 3.35e12
    device = (gathers + size / link + memory, probe)
    assert sync_seconds(SHAPE, WORK, cfg, A, 4, 1, "device") == pytest.approx(device)
    lone, _ = sync_seconds(SHAPE, WORK, cfg, A, 1, 1, "device")  # nothing to gather: the probe is its launches
    assert lone == pytest.approx(36 * 8e-4 + size / link + memory)


def test_a_transfer_that_leaves_the_node_goes_through_one_port():
    """Rank 0 and all engines are one NCCL group: 4 trainers and 4 engines are one node, a fifth engine is on another,
    behind one 400 Gb/s port, however many GPUs an engine has. A shard of two GPUs is written in half the time."""
    size, link = 2 * P, 0.75 * 450e9
    gathers = (4 + 2) * P * 3 / 4 / link
    for engines, tp, wire in ((4, 1, 450e9), (5, 1, 50e9), (2, 2, 450e9), (3, 2, 50e9)):
        cfg = config(rollout__num_actors=engines)
        publish, _ = sync_seconds(SHAPE, WORK, cfg, A, 4, tp, "device")
        assert publish == pytest.approx(gathers + size / (0.75 * wire) + size * (1 + 2 / tp) / 3.35e12)


def test_offloaded_masters_are_copied_to_the_gpu_before_they_are_gathered():
    """A quarter of 4 bytes a parameter at 40 GB/s, for the gather and again for the probe, where the copy takes longer
    than the links. An adapter's share is its own; the frozen base is copied for the probe alone."""
    link = 0.75 * 450e9
    publish, _ = sync_seconds(SHAPE, WORK, config(train__offload=True), A, 4, 1, "device")
    assert publish == pytest.approx(4 * P * 3 / 4 / link + 2 * 4 * P / 4 / 40e9 + 2 * P / link + 3 * 2 * P / 3.35e12)
    adapter = SHAPE.lora_parameters(32)
    publish, _ = sync_seconds(SHAPE, WORK, config(method="lora", train__offload=True), A, 4, 1, "host")
    gather = 4 * adapter * 3 / 4 / link + 4 * adapter / 4 / 40e9
    copies = 2 * adapter / 1e9 * (1 / 6 + 1 / 6.6 + 1 / 2)
    assert publish == pytest.approx(gather + (2 * P + 4 * adapter) / 4 / 40e9 + copies)


def test_update_is_bound_by_links_at_the_papers_batch_and_by_arithmetic_at_a_large_one():
    """8 GPUs, a case each: two gathers of 2 bytes and a float32 reduction a parameter. At a full budget of 82 cases:
    FLOPs over 40 % of the peak."""
    adam = 40 * P / 8 / 3.35e12
    links = 8 * P * 7 / 8 / (0.75 * 450e9)
    assert update_seconds(SHAPE, WORK, config(), A, 8) == pytest.approx(links + adam)
    large = config(batch_size=656)
    arithmetic = step_flops(SHAPE, WORK, large).train / 8 / (0.4 * 989e12)
    assert update_seconds(SHAPE, WORK, large, A, 8) == pytest.approx(arithmetic + adam)


def test_labelling_by_the_learner_by_hand():
    """x and x∖C share 151.6 tokens: a tree of 168.6, against 176.2 that an engine computes. 8 GPUs, a case each: one
    gather of 2 bytes a parameter takes longer than 36 layers' launches. On one GPU 8 cases are bound by arithmetic."""
    cfg = config(rollout__engine="learner")
    case = 2 * 36 * SHAPE.layer_matrices * 168.6 + 4 * 36 * 4096 * 168.6**2 + 2 * 2 * HEAD
    assert step_flops(SHAPE, WORK, cfg).rollout == pytest.approx(8 * case)
    links = 2 * P * 7 / 8 / (0.75 * 450e9)
    assert links > 36 * 8e-4
    assert label_own_seconds(SHAPE, WORK, cfg, A, 8) == pytest.approx(links)
    assert label_own_seconds(SHAPE, WORK, cfg, A, 1) == pytest.approx(8 * case / (0.4 * 989e12))
    offloaded = config(rollout__engine="learner", train__offload=True)  # 4 bytes a parameter of its shard from the host
    assert label_own_seconds(SHAPE, WORK, offloaded, A, 8) == pytest.approx(4 * P / 8 / 40e9)
    times = durations(SHAPE, WORK, cfg, A, 8, 1, "device")
    assert times.label_own == label_own_seconds(SHAPE, WORK, cfg, A, 8)
    assert durations(SHAPE, WORK, config(), A, 8, 1, "device").label_own == 0
