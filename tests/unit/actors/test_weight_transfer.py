"""What travels to the engines, how its arrival is checked, and which way it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from introspect_ray.actors.weight_sync import WeightSyncError, expect, pack, probe_tolerance, unpack, verify
from introspect_ray.actors.weight_transfer import DeviceTransfer, ObjectStoreTransfer, make_transfer
from introspect_ray.config import load_config
from introspect_ray.engines.fingerprint import fingerprints, group_of, tensor_digest
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.records import Delivery
from introspect_ray.runs.placement import resources

GPU = {"train.use_gpu": True, "rollout.num_gpus": 1}
TWO = {"rollout.num_actors": 2, "train.num_workers": 2}


def update() -> WeightUpdate:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "l.0.b": torch.ones(3, dtype=torch.bfloat16)}
    return WeightUpdate(7, "full", tensors, probe=None)


def test_pack_and_unpack_keep_every_bit():
    back = unpack(pack(update())).tensors
    assert {name: tensor.dtype for name, tensor in back.items()} == {"a.weight": torch.float32, "l.0.b": torch.bfloat16}
    assert all(torch.equal(back[name], tensor) for name, tensor in update().tensors.items())


def test_a_tied_tensor_travels_once():
    """One array under both names, hence one copy in a pickle, and one memory on the other side."""
    tied = torch.ones(4, 2)
    packed = pack(replace(update(), tensors={"embed.weight": tied, "head.weight": tied, "other.weight": tied.clone()}))
    arrays = [array for _, array in packed.tensors.values()]
    assert arrays[0] is arrays[1] and arrays[0] is not arrays[2]
    back = unpack(packed).tensors
    assert back["embed.weight"].data_ptr() == back["head.weight"].data_ptr() != back["other.weight"].data_ptr()


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3"),
        ("model.layers.30.self_attn.q_proj.bias", "model.layers.30"),
        ("model.layers.3.mlp.experts.7.w1.weight", "model.layers.3"),  # an expert belongs to its layer
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", "base_model.model.model.layers.0"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("model.norm.weight", "model.norm"),
        ("lm_head.weight", "lm_head"),
        ("scale", "scale"),
    ],
)
def test_group_is_the_name_up_to_the_layer_index(name, group):
    assert group_of(name) == group


def test_a_change_shows_in_its_own_group():
    layers = {f"model.layers.{i}.{part}.weight": torch.randn(5, 7) for i in range(3) for part in ("q", "up")}
    base = {**layers, "model.norm.weight": torch.ones(7), "lm_head.weight": torch.randn(9, 7)}
    before = fingerprints(base)
    assert list(before) == ["lm_head", "model.layers.0", "model.layers.1", "model.layers.2", "model.norm"]
    changed = {**base, "model.layers.1.up.weight": base["model.layers.1.up.weight"] + 1e-6}
    after = fingerprints(changed)
    assert [group for group in before if before[group] != after[group]] == ["model.layers.1"]
    assert fingerprints(dict(reversed(base.items()))) == before  # senders and receivers may differ in order


# Three full rows of 1024 words; two rows and a bit; less than a word, and odd bytes.
@pytest.mark.parametrize("shape", [(3, 2048), (4696,), (7,), (1,)])
def test_digest_sees_type_shape_and_single_bits(shape):
    base = torch.randn(shape)
    seen = {tensor_digest(base), tensor_digest(base.reshape(-1, 1)), tensor_digest(base.view(torch.int32))}
    flat = base.view(torch.int32).reshape(-1)
    places = sorted({0, len(flat) // 2, len(flat) - 1})
    for place in places:
        other = flat.clone()
        other[place] ^= 1
        seen.add(tensor_digest(other.view(torch.float32).reshape(shape)))
    assert len(seen) == 3 + len(places)
    assert tensor_digest(base.clone()) == tensor_digest(base)


def test_digest_sees_what_a_plain_sum_does_not():
    """Words exchanged in a row, in a column and across, and +1 beside -1: the sum of all words stays, a row's or a
    column's does not. Only four equal and opposite changes at the corners of a rectangle keep all of them."""
    base = torch.arange(4 * 1024, dtype=torch.int64).reshape(4, 1024) ** 2
    digests = {tensor_digest(base)}
    for (r, c), (s, d) in (((0, 0), (0, 9)), ((1, 5), (3, 5)), ((0, 1), (2, 3))):
        other = base.clone()
        other[r, c], other[s, d] = base[s, d], base[r, c]
        digests.add(tensor_digest(other))
    other = base.clone()
    other[1, 1] += 1
    other[2, 2] -= 1
    digests.add(tensor_digest(other))
    assert len(digests) == 5
    for place, change in (((0, 0), 1), ((0, 1), -1), ((1, 0), -1), ((1, 1), 1)):
        base[place] += change
    assert tensor_digest(base) == tensor_digest(torch.arange(4 * 1024, dtype=torch.int64).reshape(4, 1024) ** 2)


def test_digest_does_not_depend_on_where_the_tensor_lies():
    """Strided, or at an odd place of a larger storage: the same content is the same digest."""
    base = torch.randn(40, 300)
    strided = torch.stack([base, base], -1)[..., 0]
    shifted = torch.cat([torch.zeros(1), base.reshape(-1)])[1:].reshape(40, 300)
    assert not strided.is_contiguous() and shifted.storage_offset() == 1
    assert tensor_digest(strided) == tensor_digest(shifted) == tensor_digest(base)
    assert tensor_digest(torch.empty(0, 3)) != tensor_digest(torch.empty(3, 0))


def test_verify_names_what_is_wrong():
    """A receipt of another version, other bytes, or other behaviour than the trainer's stops the run."""
    sent = expect(update(), (-0.1, -2.0))
    good = Delivery(7, fingerprints(update().tensors), (-0.1, -2.001), {}, 30)
    verify(sent, [good, good], tolerance=0.002)
    for bad, says in (
        (replace(good, version=6), "version 6"),
        (replace(good, fingerprints={**good.fingerprints, "l.0": "00"}), r"in l\.0 \(1 of 2 groups differ\).*00, sent"),
        (replace(good, fingerprints={}), r"in a \(2 of 2 groups differ\): fingerprint none"),
        (replace(good, fingerprints={**good.fingerprints, "x": "11"}), r"in x \(1 of 2.*11, sent none"),
        (replace(good, probe=(-0.1, -2.01)), "0.01 nats"),
        (replace(good, probe=(-0.1, float("nan"))), "nan"),
    ):
        with pytest.raises(WeightSyncError, match=says):
            verify(sent, [good, bad], tolerance=0.002)


@pytest.mark.parametrize(
    ("flat", "nats"),
    [
        ({}, 0.002),
        ({"rollout.dtype": "bfloat16"}, 0.5),  # the coarser side decides
        ({"train.dtype": "bfloat16"}, 0.5),
        ({"train.dtype": "bfloat16", "rollout.probe_tolerance": 0.1}, 0.1),
    ],
)
def test_the_probe_tolerance_follows_the_types(flat, nats):
    assert probe_tolerance(load_config(None, flat)) == nats


def test_a_step_of_bfloat16_logits_passes_the_probe_and_a_stale_head_does_not():
    """Logits 36 and 40 on one side, each on the neighbouring bfloat16 value (0.25 away) on the other: the logprob of
    the first is -4.018 and -3.530, so 0.1 nats would refuse two right engines."""
    one = torch.tensor([36.0, 40.0], dtype=torch.bfloat16)
    other = torch.tensor([36.25, 39.75], dtype=torch.bfloat16)
    up_down = torch.tensor([1.0, -1.0])
    assert torch.equal((one.float() + 0.12 * up_down).bfloat16(), one)
    assert torch.equal((one.float() + 0.13 * up_down).bfloat16(), other)
    sent = expect(update(), tuple(one.float().log_softmax(-1).tolist()))
    got = Delivery(7, sent.fingerprints, tuple(other.float().log_softmax(-1).tolist()), {}, 30)
    tolerance = probe_tolerance(load_config(None, {"rollout.dtype": "bfloat16"}))
    verify(sent, [got], tolerance)
    with pytest.raises(WeightSyncError, match=r"off by 0\.49 nats, allowed are 0\.1: .*--resume and a larger"):
        verify(sent, [got], 0.1)
    with pytest.raises(WeightSyncError, match=r"off by 3 nats"):
        verify(sent, [replace(got, probe=(got.probe[0] - 3.5, got.probe[1]))], tolerance)


def test_a_colocated_engine_and_its_trainer_make_one_gpu():
    """Two trainers with an engine each: 2 GPUs over ipc; over the object store 2 + 2 x 0.6."""
    flat = {**GPU, "rollout.num_gpus": 0.6, **TWO}
    shared = load_config(None, {**flat, "rollout.weight_transfer": "ipc"})
    assert resources(shared)["GPU"] == pytest.approx(2.0)
    assert resources(load_config(None, flat))["GPU"] == pytest.approx(3.2)


def test_the_second_engine_of_a_mixed_run_has_gone_when_the_trainers_come():
    """Beside the engines: the worker of the reference cache and the second engine, or the trainers, if they need more.
    cluster/h100.yaml: 1 + max(4, 1 + 1) = 5 GPUs. One worker on CPUs: 1 + max(1, 1 + 1), without a cache 1 + max(1, 1).
    CPU and GPU are widest at different times: 1 + max(2 x 1, 1 + 1) GPUs, 4 + max(2 x 1, 1 + 4) CPUs."""
    mixed = {"supervision.rule": "mixed", "supervision.second_policy": "organism:second"}
    h100 = str(Path(__file__).parents[3] / "cluster" / "h100.yaml")
    assert resources(load_config(h100, mixed))["GPU"] == 5
    assert resources(load_config(None, mixed)) == {"CPU": 3, "GPU": 0}
    assert resources(load_config(None, {**mixed, "method": "lora", "train.reference": "live"}))["CPU"] == 2
    assert resources(load_config(None, {**mixed, **GPU, "train.num_workers": 2, "rollout.num_cpus": 4})) == {
        "CPU": 9,
        "GPU": 3,
    }
    assert resources(load_config(None, {})) == {"CPU": 2, "GPU": 0}


def test_each_choice_has_its_transfer():
    assert type(make_transfer(load_config(None, {}), None, 0)) is ObjectStoreTransfer
    assert type(make_transfer(load_config(None, GPU), None, 0)) is DeviceTransfer
