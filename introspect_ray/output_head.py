"""The output head: hidden states -> logits, with what an architecture does to them afterwards.

Shape suffixes: N rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
_SLICE_BYTES = 1 << 25  # of a mapped weight in memory at a time


class MappedWeight:
    """A matrix that stays in its safetensors file, mapped into memory; at most 32 MiB of it are there at a time.

    What was read is let go again. It stays in the system's page cache while there is room, so reading it once more
    costs page faults, not a read.
    """

    def __init__(self, file: Path, name: str) -> None:
        with file.open("rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))  # of the header, a JSON object that follows
            found = json.loads(handle.read(size))[name]
            self._map = mmap.mmap(handle.fileno(), 0, flags=mmap.MAP_PRIVATE)  # a write would not reach the file
        self._first, end = (8 + size + offset for offset in found["data_offsets"])
        dtype = _TYPES[found["dtype"]]
        count = (end - self._first) // dtype.itemsize
        self.weight_VH = torch.frombuffer(self._map, dtype=dtype, count=count, offset=self._first).view(found["shape"])

    def slices(self) -> Iterator[Tensor]:
        """The matrix in parts of some rows."""
        row_bytes = self.weight_VH[0].nbytes
        at = self._first
        for part in self.weight_VH.split(max(1, _SLICE_BYTES // row_bytes)):
            yield part
            page = mmap.PAGESIZE
            start, at = -(-at // page) * page, at + part.nbytes
            if at // page * page > start:
                self._map.madvise(mmap.MADV_DONTNEED, start, at // page * page - start)


class OutputHead(NamedTuple):
    """logits = scaled(hidden @ weight.T + bias). Weight [V, H], bias [V] or None; `scaling`: see logit_scaling.

    mapped: where the weight lies if it is to be read from its file.
    """

    weight_VH: Tensor
    bias_V: Tensor | None
    scaling: dict[str, float]
    mapped: MappedWeight | None = None

    def raw(self, hidden_NH: Tensor) -> Tensor:
        """The product alone, [N, V], in the weight's type."""
        hidden_NH = hidden_NH.to(self.weight_VH.dtype)
        if self.mapped is None:
            return F.linear(hidden_NH, self.weight_VH, self.bias_V)
        logits = torch.cat([F.linear(hidden_NH, part) for part in self.mapped.slices()], dim=-1)
        return logits if self.bias_V is None else logits.add_(self.bias_V)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """[N, V], in the weight's type."""
        return scale_logits(self.raw(hidden_NH), self.scaling)

    def to(self, dtype: torch.dtype) -> OutputHead:
        """The same head computing in another type."""
        if dtype == self.weight_VH.dtype:
            return self
        bias = None if self.bias_V is None else self.bias_V.to(dtype)
        return OutputHead(self.weight_VH.to(dtype), bias, self.scaling)


def logit_scaling(config: Any) -> dict[str, float]:
    """What this architecture does to the output head's product: {"divide", "multiply", "softcap"}, if anything."""
    config = config.get_text_config()
    found = {
        "divide": getattr(config, "logits_scaling", None),  # Granite
        "multiply": getattr(config, "logit_scale", None),  # Cohere
        "softcap": getattr(config, "final_logit_softcapping", None),  # Gemma 2
    }
    return {name: float(value) for name, value in found.items() if value}


def scale_logits(logits: Tensor, scaling: dict[str, float]) -> Tensor:
    """Apply `logit_scaling`; the shape is kept."""
    if "divide" in scaling:
        logits = logits / scaling["divide"]
    if "multiply" in scaling:
        logits = logits * scaling["multiply"]
    if "softcap" in scaling:
        logits = torch.tanh(logits / scaling["softcap"]) * scaling["softcap"]
    return logits
