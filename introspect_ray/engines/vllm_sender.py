"""The trainer's end of vLLM's own weight transfer (NCCL, CUDA IPC). Imports vLLM at the top: load it only to send.

Backends differ in their init info alone. Every trainer rank opens a sender and calls `send` in lockstep: the
learner gathers each tensor on all ranks, rank 0 transmits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from introspect_ray.engines.fingerprint import grouped, tensor_digest

if TYPE_CHECKING:
    from introspect_ray.train.learner import Learner


class Endpoint(NamedTuple):
    """Where a sender and its engines meet: rank 0's address and port, and processes in all (rank 0 and workers)."""

    address: str
    port: int
    world_size: int


class LearnerSource(WeightSource):
    """vLLM's view of a learner: names and shapes without a gather, then one gathered tensor at a time.

    `digests` are those of the tensors of the latest pass, as handed to the transport; rank 0 alone computes them.
    """

    def __init__(self, learner: Learner, rank: int) -> None:
        self._learner, self._rank = learner, rank
        self.digests: dict[str, bytes] = {}

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(*described) for described in self._learner.described()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.digests = {}
        for name, tensor in self._learner.stream():
            if self._rank == 0:
                self.digests[name] = tensor_digest(tensor)
            yield name, tensor


class Sender:
    """One trainer rank's end, open for the whole training."""

    def __init__(
        self,
        backend: Literal["nccl", "ipc"],
        learner: Learner,
        rank: int,
        client: Any,
        endpoint: Callable[[], Endpoint],
    ) -> None:
        """Rendezvous with the engines behind `client` (vLLM's VLLMWeightSyncClient protocol). Blocks until all are
        there. `endpoint` is called for nccl only. Raises what the engines raise on names or shapes of another policy.
        """
        self._source = LearnerSource(learner, rank)
        if backend == "nccl":
            info = NCCLTrainerInitInfo(*endpoint(), rank=rank)
        else:  # packed: chunk by chunk, not a second copy of the policy on the GPU
            info = IPCTrainerInitInfo(packed=True, rank=rank)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._source)

    def send(self) -> dict[str, str]:
        """Move the current weights into all engines; returns their fingerprints by group (empty but on rank 0)."""
        self._engine.send_weights()
        return grouped(self._source.digests)
