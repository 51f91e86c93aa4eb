"""Weights packed for the Ray object store, and the check that they arrived.

Tensors are stored as NumPy views (bfloat16 as int16): Ray maps those into every reader without a copy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from introspect_ray.config import RunConfig
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.errors import AlarmError
from introspect_ray.labels.alarms import worst_gap
from introspect_ray.records import Delivery

if TYPE_CHECKING:
    import torch


# How far the logprobs of two correct implementations may differ, in nats. A label's logprob is its logit minus the
# log-sum over all logits, which follows the largest one. float32: 7e-5 was the largest difference measured. bfloat16
# has 8 significant bits, and both sides round the logits to it before they subtract: neighbouring values between 16 and
# 32 are 2^(4-7) = 0.125 apart, between 32 and 64 0.25. If the order of summation moves one of the two logits to the
# next value, the logprob is off by one such step; if it moves both, by two. Measured (SmolLM2-135M, vLLM on a CPU, 64
# prompts): median 0.13, maximum 0.24. A head or layer with older weights is off by nats (a stale tied head: 3). Wrong
# bytes are detected by the fingerprints, not by the probe. In bfloat16 the bound is one on the root mean square over a
# probe, since single logprobs are off by more at times: in the probes of 80 deliveries (SmolLM2-135M, learner and
# transformers on a CPU, 5,760 logprobs) the root mean square was 0.28 at most and a single one 0.85. In float32 single
# ones were off by 2e-5 at most.
PROBE_TOLERANCE = {"float32": 2e-3, "bfloat16": 2 * 2.0 ** (5 - 7)}
SPREAD = {"float32": 1, "bfloat16": 8}  # how many times as much a single one may be off


class WeightSyncError(AlarmError):
    """An engine does not serve the weights that the trainer sent. The run stops, for its labels would be worthless."""


class Tolerance(NamedTuple):
    """How far the logprobs of a right engine may be off on a probe, in nats: their root mean square, and any one."""

    typical: float
    single: float

    def allows(self, typical: float, single: float) -> bool:
        """Whether logprobs that are off by so much are right; NaN is beyond every bound."""
        return typical <= self.typical and single <= self.single


@dataclass(frozen=True)
class Expected:
    """What every engine's receipt must say: version, fingerprints by group of tensors, the trainer's probe logprobs.

    tolerance: how far the engine's probe logprobs may be off (see `probe_tolerance`).
    """

    version: int
    fingerprints: Mapping[str, str]
    probe: tuple[float, ...]
    tolerance: Tolerance


def probe_tolerance(cfg: RunConfig) -> Tolerance:
    """rollout.probe_tolerance, or what the coarser dtype of engine and trainer needs."""
    coarser = "bfloat16" if "bfloat16" in (cfg.rollout.dtype, cfg.train.dtype) else "float32"
    nats = cfg.rollout.probe_tolerance or PROBE_TOLERANCE[coarser]
    return Tolerance(nats, nats * SPREAD[coarser])


def off_by(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """How far two lists of logprobs are apart, in nats: the root mean square, and the largest (NaN if any is NaN)."""
    squares = [(a - b) * (a - b) for a, b in zip(ours, theirs, strict=True)]
    return math.sqrt(sum(squares) / len(squares)), worst_gap(ours, theirs)


def pack(update: WeightUpdate) -> WeightUpdate:
    """Tensors -> (dtype name, NumPy array), which the object store shares without a copy.

    A tied tensor is one array under both names: it is stored once and read once.
    """
    made: dict[tuple, tuple[str, np.ndarray]] = {}
    packed: dict[str, Any] = {}
    for name, tensor in update.tensors.items():
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if key not in made:
            made[key] = _to_numpy(tensor)
        packed[name] = made[key]
    return replace(update, tensors=packed)


def unpack(update: WeightUpdate) -> WeightUpdate:
    """The inverse of `pack`. The tensors alias read-only shared memory: engines must copy them, not write to them."""
    made = {id(packed[1]): _to_torch(*packed) for packed in update.tensors.values()}
    return replace(update, tensors={name: made[id(packed[1])] for name, packed in update.tensors.items()})


def verify(expected: Expected, deliveries: Sequence[Delivery | None]) -> None:
    """Raises WeightSyncError unless every receipt names the version, the same bytes and the same probe logprobs.

    The fingerprints prove what arrived; the probe (logprobs, compared in nats) what is served.
    deliveries: one per engine; None: it has no receipt.
    """
    for engine, got in enumerate(deliveries):
        if got is None:
            raise WeightSyncError(f"engine {engine} has no receipt of weight version {expected.version}")
        if got.version != expected.version:
            raise WeightSyncError(f"engine {engine} reports weight version {got.version}, expected {expected.version}")
        if differing := _differing(expected.fingerprints, got.fingerprints):
            group = differing[0]
            raise WeightSyncError(
                f"engine {engine} received other bytes for weight version {expected.version} in {group} "
                f"({len(differing)} of {len(expected.fingerprints)} groups differ): fingerprint "
                f"{got.fingerprints.get(group, 'none')}, sent {expected.fingerprints.get(group, 'none')}"
            )
        _compare(engine, expected, got.probe)


def _compare(engine: int, expected: Expected, served: Sequence[float]) -> None:
    typical, worst = off_by(served, expected.probe)
    allowed = expected.tolerance
    if allowed.allows(typical, worst):
        return
    beyond = sum(not abs(a - b) <= allowed.single for a, b in zip(served, expected.probe, strict=True))
    raise WeightSyncError(
        f"engine {engine} does not serve weight version {expected.version}: its {len(served)} logprobs on the probe "
        f"are off by {worst:.2g} nats at most ({beyond} by more than {allowed.single:g}) and by {typical:.2g} in the "
        f"root mean square, allowed are {allowed.typical:g}: if both sides are right and differ by rounding alone, go "
        "on with --resume and a larger rollout.probe_tolerance"
    )


def _differing(sent: Mapping[str, str], got: Mapping[str, str]) -> list[str]:
    """The groups whose fingerprints differ, or that one side lacks, in the order sent."""
    return [group for group in dict.fromkeys([*sent, *got]) if sent.get(group) != got.get(group)]


def _to_numpy(tensor: torch.Tensor) -> tuple[str, np.ndarray]:
    import torch

    tensor = tensor.detach().cpu().contiguous()
    raw = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return str(tensor.dtype).removeprefix("torch."), raw.numpy()


def _to_torch(dtype: str, array: np.ndarray) -> torch.Tensor:
    import torch

    with warnings.catch_warnings():
        # torch warns that the arrays of the object store are read-only; nothing writes to them.
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
