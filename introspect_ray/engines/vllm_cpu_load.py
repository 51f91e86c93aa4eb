"""Full weight updates on a CPU, without what vLLM's layerwise reload does twice.

vLLM packs the weight of a linear map for oneDNN and drops the weight itself, so an update must load and pack it again.
Its layerwise reload calls every loader a second time to count, and takes new memory for every weight. Here a weight is
loaded into memory that the next one uses again, is packed when it is complete, and embeddings, norms and other plain
weights are loaded where they are. The packed weights are the same, bit for bit.

Only vllm_receiver.py may import this module, since it imports vLLM at the top.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs
from vllm.platforms import current_platform


class PackedLinear:
    """One linear map whose weight vLLM keeps in packed form alone."""

    def __init__(self, layer: Any, memory: Memory) -> None:
        self._layer, self._memory = layer, memory
        described = get_layerwise_info(layer).restore_metadata[0]["weight"]
        self._nowhere = torch.empty((), dtype=described.dtype).expand(described.shape)  # a shape that takes no memory
        self._parameter: Any = self._nowhere.detach()
        self._parameter.__class__ = described.__class__
        self._parameter.__dict__ = described.__dict__.copy()
        self._load = restore_layer_refs(self._parameter, layer).weight_loader
        self._parameter.weight_loader = self._receive
        self._missing = 0

    def expect(self) -> None:
        """Take a whole new weight from vLLM's model.load_weights."""
        self._layer.register_parameter("weight", self._parameter)
        self._missing = self._parameter.numel()

    def check(self) -> None:
        """Raises RuntimeError for a weight that has not come, or not as a whole."""
        if self._missing:
            raise RuntimeError(
                f"{self._layer.prefix}: {self._missing} of {self._parameter.numel()} elements of its weight are missing"
            )

    def _receive(self, parameter: Any, weight: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """vLLM's loader for one tensor: the weight, or a part of it that it shares with others (q, k and v, say)."""
        if self._missing == parameter.numel():
            parameter.data = self._memory.take(parameter.shape, parameter.dtype)
        self._load(parameter, weight, *args, **kwargs)
        self._missing -= weight.numel()
        if self._missing:
            return
        self._layer.quant_method.process_weights_after_loading(self._layer)
        if self._layer.weight is not parameter:  # packed: else (without oneDNN) it is the weight from now on
            self._memory.give_back(parameter.data)
        parameter.data = self._nowhere


class Memory:
    """Blocks for weights that are being loaded; one that is given back is used again."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []

    def take(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        size = shape.numel() * dtype.itemsize
        block = next((block for block in self._free if block.numel() >= size), None)
        if block is None:
            return torch.empty(size, dtype=torch.uint8).view(dtype).view(shape)
        self._free = [other for other in self._free if other is not block]
        return block[:size].view(dtype).view(shape)

    def give_back(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._free.append(torch.empty(0, dtype=torch.uint8).set_(storage))

    def clear(self) -> None:
        self._free.clear()


class PlainLoad:
    """The modules of a model that need no layerwise reload, in one update after another."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.modules = [module for module in model.modules() if _is_plain(module)]
        self.embeddings = [module for module in self.modules if isinstance(module, VocabParallelEmbedding)]
        self._memory = Memory()
        self._linear = [PackedLinear(module, self._memory) for module in self.modules if isinstance(module, LinearBase)]

    def begin(self) -> None:
        for linear in self._linear:
            linear.expect()

    def finish(self) -> None:
        """Raises RuntimeError where the weight of a linear map has not come."""
        for linear in self._linear:
            linear.check()
        self._memory.clear()


def _is_plain(module: Any) -> bool:
    """Whether a module's own weights are used as loaded, or packed by _packs."""
    if isinstance(module, LinearBase):
        return _packs(module)
    if isinstance(module, VocabParallelEmbedding):
        return type(module.quant_method) is UnquantizedEmbeddingMethod
    return not hasattr(module, "quant_method") and not hasattr(module, "process_weights_after_loading")


def _packs(layer: Any) -> bool:
    """Whether vLLM packs the layer's weight into memory of its own and drops it."""
    return (
        type(layer.quant_method) is UnquantizedLinearMethod
        and layer.tp_size == 1  # an element that comes is an element of the weight
        and not getattr(layer, "_cpu_skip_gemm_dispatch", False)
        and layer.weight.numel() == 0
        and not current_platform.is_zen_cpu()  # whose packed form may be a view of the weight
    )


class Without:
    """A model without some of its modules, for vLLM's layerwise reload."""

    def __init__(self, model: torch.nn.Module, left_out: list[torch.nn.Module]) -> None:
        self._model, self._left_out = model, set(left_out)

    def modules(self) -> Iterator[torch.nn.Module]:
        return (module for module in self._model.modules() if module not in self._left_out)
