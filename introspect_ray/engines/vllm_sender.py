"""The trainer's end of vLLM's own weight transfer (NCCL, CUDA IPC). It imports vLLM at the top: import it only to send.

The backends differ in their init info only. Every trainer rank opens a sender, and all ranks call `send` together: the
learner gathers each tensor on all ranks, and rank 0 sends it.
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
    from introspect_ray.training.learner import Learner


class Endpoint(NamedTuple):
    """Where a sender and its engines meet."""

    address: str  # of rank 0
    port: int
    world_size: int  # rank 0 and all workers of the engines


class LearnerSource(WeightSource):
    """vLLM's view of a learner: first names and shapes, without a gather, then one gathered tensor at a time.

    `digests` holds a digest of each tensor of the latest pass, as handed to the transport. Only rank 0 computes them.
    """

    def __init__(self, learner: Learner, rank: int) -> None:
        self._learner, self._rank = learner, rank
        self.digests: dict[str, bytes] = {}

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(*tensor) for tensor in self._learner.described()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.digests = {}
        for name, tensor in self._learner.stream():
            if self._rank == 0:
                self.digests[name] = tensor_digest(tensor)
            yield name, tensor


class Sender:
    """The end of one trainer rank, open as long as the training."""

    def __init__(
        self,
        backend: Literal["nccl", "ipc"],
        learner: Learner,
        rank: int,
        client: Any,
        endpoint: Callable[[], Endpoint],
    ) -> None:
        """Rendezvous with the engines behind `client` (vLLM's VLLMWeightSyncClient protocol); waits for all of them.

        `endpoint` is called for nccl only. Raises what the engines raise where names or shapes do not fit.
        """
        self._source = LearnerSource(learner, rank)
        info: NCCLTrainerInitInfo | IPCTrainerInitInfo
        if backend == "nccl":
            info = NCCLTrainerInitInfo(*endpoint(), rank=rank)
        else:  # packed: sent in chunks, without a second copy of the policy on the GPU
            info = IPCTrainerInitInfo(packed=True, rank=rank)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._source)

    def send(self) -> dict[str, str]:
        """Send the current weights to all engines. Returns their fingerprints by group on rank 0, {} elsewhere."""
        self._engine.send_weights()
        return grouped(self._source.digests)
