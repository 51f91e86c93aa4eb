"""Weights packed for the engines, the check of the receipts, and the choice of the transfer."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from introspect_ray.actors.weight_sync import (
    Expected,
    Tolerance,
    WeightSyncError,
    pack,
    probe_tolerance,
    unpack,
    verify,
)
from introspect_ray.actors.weight_transfer import DeviceTransfer, ObjectStoreTransfer, make_transfer
from introspect_ray.config import load_config
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.records import Delivery

GPU = {"train.use_gpu": True, "rollout.num_gpus": 1}


def update() -> WeightUpdate:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "l.0.b": torch.ones(3, dtype=torch.bfloat16)}
    return WeightUpdate(7, "full", tensors, probe=())


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


def test_verify_names_what_is_wrong():
    """A receipt of another version, other bytes, or other behaviour than the trainer's stops the run."""
    sent = Expected(7, fingerprints(update().tensors), (-0.1, -2.0), Tolerance(0.002, 0.002))
    good = Delivery(7, fingerprints(update().tensors), (-0.1, -2.001), {}, 30)
    verify(sent, [good, good])
    for bad, says in (
        (replace(good, version=6), "version 6"),
        (replace(good, fingerprints={**good.fingerprints, "l.0": "00"}), r"in l\.0 \(1 of 2 groups differ\).*00, sent"),
        (replace(good, fingerprints={}), r"in a \(2 of 2 groups differ\): fingerprint none"),
        (replace(good, fingerprints={**good.fingerprints, "x": "11"}), r"in x \(1 of 2.*11, sent none"),
        (replace(good, probe=(-0.1, -2.01)), "0.01 nats"),
        (replace(good, probe=(-0.1, float("nan"))), "nan"),
    ):
        with pytest.raises(WeightSyncError, match=says):
            verify(sent, [good, bad])
    with pytest.raises(WeightSyncError, match="engine 0 has no receipt of weight version 7"):
        verify(sent, [None])


@pytest.mark.parametrize(
    ("flat", "nats", "one"),
    [
        ({}, 0.002, 0.002),
        ({"rollout.dtype": "bfloat16"}, 0.5, 4),  # the coarser side decides
        ({"train.dtype": "bfloat16"}, 0.5, 4),
        ({"train.dtype": "bfloat16", "rollout.probe_tolerance": 0.1}, 0.1, 0.8),
    ],
)
def test_the_probe_tolerance_follows_the_types(flat, nats, one):
    assert probe_tolerance(load_config(None, flat)) == Tolerance(nats, one)


def test_a_step_of_bfloat16_logits_passes_the_probe_and_a_stale_head_does_not():
    """Logits 36 and 40 on one side, each on the neighbouring bfloat16 value (0.25 away) on the other: the logprob of
    the first is -4.018 and -3.530, so 0.1 nats would refuse two right engines."""
    one = torch.tensor([36.0, 40.0], dtype=torch.bfloat16)
    other = torch.tensor([36.25, 39.75], dtype=torch.bfloat16)
    up_down = torch.tensor([1.0, -1.0])
    assert torch.equal((one.float() + 0.12 * up_down).bfloat16(), one)
    assert torch.equal((one.float() + 0.13 * up_down).bfloat16(), other)
    tolerance = probe_tolerance(load_config(None, {"rollout.dtype": "bfloat16"}))
    sent = Expected(7, {"a": "00"}, tuple(one.float().log_softmax(-1).tolist()), tolerance)
    got = Delivery(7, sent.fingerprints, tuple(other.float().log_softmax(-1).tolist()), {}, 30)
    verify(sent, [got])
    with pytest.raises(WeightSyncError, match=r"0\.49 nats at most \(0 by more than 0\.8\) .* 0\.35 .* 0\.1: .*larger"):
        verify(replace(sent, tolerance=Tolerance(0.1, 0.8)), [got])
    with pytest.raises(WeightSyncError, match=r"off by 3 nats"):
        verify(sent, [replace(got, probe=(got.probe[0] - 3.5, got.probe[1]))])


def test_each_choice_has_its_transfer():
    """Without engines nothing is sent: there is no group of GPUs to open."""
    one, none = SimpleNamespace(actors=[None]), SimpleNamespace(actors=[])
    assert type(make_transfer(load_config(None, {}), one, 0)) is ObjectStoreTransfer
    assert type(make_transfer(load_config(None, GPU), one, 0)) is DeviceTransfer
    assert type(make_transfer(load_config(None, GPU), none, 0)) is ObjectStoreTransfer
