"""The output head: hidden states -> logits, with the scaling that some architectures apply to them.

Shape suffixes: N rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from introspect_ray.training.mapped_tensors import MappedTensors

_SLICE_BYTES = 1 << 25  # of a mapped weight that are in memory at a time


class MappedWeight:
    """A matrix that stays in its safetensors file. `slices` maps at most 32 MiB of it into memory at a time."""

    def __init__(self, file: MappedTensors, name: str) -> None:
        self._file, self._name = file, name
        self.weight_VH = self._file.tensors[name]

    def slices(self) -> Iterator[Tensor]:
        """The matrix as consecutive groups of rows; the memory of a group is given back before the next one."""
        row_bytes, start = self.weight_VH[0].nbytes, 0
        for part in self.weight_VH.split(max(1, _SLICE_BYTES // row_bytes)):
            yield part
            self._file.release(self._name, start, start + part.nbytes)
            start += part.nbytes


class OutputHead(NamedTuple):
    """logits = scaled(hidden @ weight.T + bias).

    scaling: as logit_scaling gives it. mapped: the weight in its file, if it is to be read from there.
    """

    weight_VH: Tensor
    bias_V: Tensor | None
    scaling: dict[str, float]
    mapped: MappedWeight | None = None

    def raw(self, hidden_NH: Tensor) -> Tensor:
        """Logits before scaling, [N, V], in the weight's type."""
        hidden_NH = hidden_NH.to(self.weight_VH.dtype)
        if self.mapped is None:
            return F.linear(hidden_NH, self.weight_VH, self.bias_V)
        logits = torch.cat([F.linear(hidden_NH, part) for part in self.mapped.slices()], dim=-1)
        return logits if self.bias_V is None else logits.add_(self.bias_V)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V], in the weight's type."""
        return scale_logits(self.raw(hidden_NH), self.scaling)

    def to(self, dtype: torch.dtype) -> OutputHead:
        """The same head in another type, with its weight in memory."""
        if dtype == self.weight_VH.dtype:
            return self
        bias = None if self.bias_V is None else self.bias_V.to(dtype)
        return OutputHead(self.weight_VH.to(dtype), bias, self.scaling)


def logit_scaling(config: Any) -> dict[str, float]:
    """How an architecture scales its logits: a dict with any of the keys "divide", "multiply" and "softcap"."""
    config = config.get_text_config()
    factors = {
        "divide": getattr(config, "logits_scaling", None),  # Granite
        "multiply": getattr(config, "logit_scale", None),  # Cohere
        "softcap": getattr(config, "final_logit_softcapping", None),  # Gemma 2
    }
    return {name: float(value) for name, value in factors.items() if value}


def scale_logits(logits: Tensor, scaling: dict[str, float]) -> Tensor:
    """Apply what `logit_scaling` found; the shape stays the same."""
    if "divide" in scaling:
        logits = logits / scaling["divide"]
    if "multiply" in scaling:
        logits = logits * scaling["multiply"]
    if "softcap" in scaling:
        logits = torch.tanh(logits / scaling["softcap"]) * scaling["softcap"]
    return logits
