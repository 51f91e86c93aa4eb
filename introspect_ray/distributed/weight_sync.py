"""Weights on their way through the Ray object store, and the check that they arrived.

Tensors travel as NumPy views (bfloat16 as int16): Ray maps those into every reader without a copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from introspect_ray.engines.base import WeightUpdate, checksum
from introspect_ray.errors import AlarmError
from introspect_ray.loop import worst_gap
from introspect_ray.records import Delivery

if TYPE_CHECKING:
    import torch


class WeightSyncError(AlarmError):
    """An engine does not serve what the trainer sent. The run must stop: its labels would be of unknown weights."""


@dataclass(frozen=True)
class Expected:
    """What every engine's receipt must say: version, checksum of the tensors, the trainer's own probe logprobs."""

    version: int
    checksum: str
    probe: tuple[float, ...]


def pack(update: WeightUpdate) -> WeightUpdate:
    """Tensors -> (dtype name, array) that the object store shares without a copy."""
    return replace(update, tensors={name: _to_numpy(tensor) for name, tensor in update.tensors.items()})


def unpack(update: WeightUpdate) -> WeightUpdate:
    """The inverse of `pack`; the tensors alias read-only shared memory, so engines copy, never write."""
    return replace(update, tensors={name: _to_torch(*packed) for name, packed in update.tensors.items()})


def expect(update: WeightUpdate, probe: tuple[float, ...]) -> Expected:
    return Expected(update.version, checksum(update.tensors), probe)


def verify(expected: Expected, deliveries: Sequence[Delivery], tolerance: float) -> None:
    """Raises WeightSyncError unless every receipt names the version, the same bytes and the same probe logprobs.

    The checksum proves what arrived; the probe (label logprobs in nats on one case) proves what is served.
    """
    for engine, got in enumerate(deliveries):
        if got.version != expected.version:
            raise WeightSyncError(f"engine {engine} reports weight version {got.version}, expected {expected.version}")
        if got.checksum != expected.checksum:
            raise WeightSyncError(
                f"engine {engine} received other bytes for weight version {expected.version}: "
                f"checksum {got.checksum}, sent {expected.checksum}"
            )
        gap = worst_gap(got.probe, expected.probe)
        if not gap <= tolerance:
            raise WeightSyncError(
                f"engine {engine} does not serve weight version {expected.version}: its logprobs on the probe case "
                f"are off by {gap:.2g} nats (rollout.probe_tolerance={tolerance:g}; bfloat16 engines need a larger one)"
            )


def _to_numpy(tensor: torch.Tensor) -> tuple[str, np.ndarray]:
    import torch

    tensor = tensor.detach().cpu().contiguous()
    raw = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return str(tensor.dtype).removeprefix("torch."), raw.numpy()


def _to_torch(dtype: str, array: np.ndarray) -> torch.Tensor:
    import torch

    with warnings.catch_warnings():
        # The object store's arrays are read-only, and torch warns once; nothing downstream writes to them.
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
