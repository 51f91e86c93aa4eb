"""The worker's end of a full weight update: a backend of vLLM's weight-transfer API.

Imported in every vLLM worker (through `worker_extension_cls`), and by vllm_engine.py before the engine
starts; it imports vLLM at the top and nobody else may import it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "introspect_in_process"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the tensors come with the call."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """weights: Hugging Face names -> CPU tensors of one chunk; a layer's tensors may span chunks."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)


class InProcessReceiver(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads the tensors it is handed, layer by layer, with vLLM's own weight loaders and post-processing."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """No rendezvous."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, which synchronizes an accelerator and so raises on a machine without one."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        self.model.load_weights(iter(update_info.weights.items()))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held."""


class WorkerExtension:
    """Empty: naming it in `worker_extension_cls` makes each worker import, and so register, this module."""


WeightTransferEngineFactory.register_engine(BACKEND, InProcessReceiver)
