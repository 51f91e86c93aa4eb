"""The worker's end of a full weight update: backends of vLLM's weight-transfer API.

Every vLLM worker imports this module (through `worker_extension_cls`), and so does vllm_start.py before its engine
starts. Nothing else may import it, since it imports vLLM at the top.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from introspect_ray.engines.fingerprint import grouped, tensor_digest
from introspect_ray.engines.vllm_cpu_load import PlainLoad, Without

BACKEND = "introspect_in_process"
DEVICE_BACKENDS = {"nccl": "introspect_nccl", "ipc": "introspect_ipc"}  # rollout.weight_transfer -> registered name


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Empty: the tensors come with the call, so there is nothing to agree on."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """weights: the CPU tensors of one chunk by Hugging Face name; the tensors of a layer may span chunks."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)


class InProcessReceiver(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads tensors with vLLM's own weight loaders and post-processing.

    On a CPU, plain weights are left out of vLLM's layerwise reload (vllm_cpu_load.py). A tied embedding is loaded once,
    and the packed copy of a head is made again at the end.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to do: there is no rendezvous."""
        self._plain: PlainLoad | None = None

    def start_weight_update(self) -> None:
        if self.device.type == "cpu":
            self._plain = self._plain or PlainLoad(self.model)
            self._plain.begin()
        initialize_layerwise_reload(self._layers())

    def _layers(self) -> Any:
        return Without(self.model, self._plain.modules) if self._plain else self.model

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class does, but without synchronising an accelerator on a CPU, which would raise."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        model: Any = self.model
        model.load_weights(self._without_tied_head(update_info.weights))

    def _without_tied_head(self, weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors but a tied head. It is the embedding, and vLLM refuses it in a chunk without the embedding."""
        tied = self._plain is not None and _is_tied(getattr(self.model, "lm_head", None), self._plain.embeddings)
        return ((name, tensor) for name, tensor in weights.items() if not (tied and name == "lm_head.weight"))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self._layers(), self.model_config)
        if self._plain is None:
            return
        self._plain.finish()
        module: Any
        for module in self._plain.embeddings:
            is_head = isinstance(module, ParallelLMHead) or module is getattr(self.model, "lm_head", None)
            if is_head:
                module.quant_method.process_weights_after_loading(module)
            else:  # an embedding; should vLLM use it as a head too, it must read the weight, not an old packed copy
                module.cpu_linear = torch.nn.functional.linear

    def shutdown(self) -> None:
        """Nothing to free."""


def _is_tied(head: torch.nn.Module | None, embeddings: list[torch.nn.Module]) -> bool:
    """Whether the output head shares its weight with an embedding; in some models it is the embedding itself."""
    if head not in embeddings or not isinstance(head, ParallelLMHead):
        return head in embeddings
    return any(other is not head and other.weight is head.weight for other in embeddings)


class _DigestingModel:
    """Wraps a model while it is loaded, and digests each tensor as the transport delivered it."""

    def __init__(self, model: Any, receiver: _Receipts) -> None:
        self._model, self._receiver = model, receiver

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        return self._model.load_weights(self._digested(weights))

    def _digested(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self._receiver.digests[name] = tensor_digest(tensor)
            self._receiver.size += tensor.numel() * tensor.element_size()
            yield name, tensor


class _Receipts:
    """Mixed into vLLM's own receivers: notes what arrived since the last start_weight_update."""

    digests: dict[str, bytes]  # by tensor name
    size: int  # bytes
    model: Any

    def start_weight_update(self) -> None:
        self.digests, self.size = {}, 0
        super().start_weight_update()  # type: ignore[misc]  # vLLM's receiver comes next

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = _DigestingModel(model, self)
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model


class NCCLReceiver(_Receipts, NCCLWeightTransferEngine):
    """vLLM's NCCL broadcast, with receipts."""


class IPCReceiver(_Receipts, IPCWeightTransferEngine):
    """vLLM's CUDA IPC, with receipts."""


class WorkerExtension:
    """Named in `worker_extension_cls`, it makes each worker import this module, which registers the backends."""

    weight_transfer_engine: Any  # of the worker that vLLM mixes this class into

    def take_receipt(self) -> tuple[dict[str, str], int]:
        """Fingerprints by group of what this worker received in its latest update, and its bytes."""
        receiver = self.weight_transfer_engine
        return grouped(receiver.digests), receiver.size


WeightTransferEngineFactory.register_engine(BACKEND, InProcessReceiver)
WeightTransferEngineFactory.register_engine(DEVICE_BACKENDS["nccl"], NCCLReceiver)
WeightTransferEngineFactory.register_engine(DEVICE_BACKENDS["ipc"], IPCReceiver)
