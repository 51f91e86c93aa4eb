"""Tensors that lie in a safetensors file and are read and written where they lie, mapped into memory.

The library reads a file so, but gives its pages not back, and writes only what is in memory as a whole.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from introspect_ray.errors import UserError

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class MappedTensors:
    """`tensors` by name, float32 or bfloat16; those of a file opened to be read are not to be written."""

    def __init__(self, file: Path, shared: bool = False) -> None:
        """shared: what is written to the tensors goes to the file."""
        with file.open("r+b" if shared else "rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))  # of the header, a JSON object that follows
            header = json.loads(handle.read(size))
            self._map = mmap.mmap(handle.fileno(), 0, flags=mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE)
        self._first = {name: 8 + size + found["data_offsets"][0] for name, found in header.items()}
        self.tensors = {name: self._tensor(name, found["dtype"], found["shape"]) for name, found in header.items()}

    @classmethod
    def create(cls, file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> MappedTensors:
        """A new file of zeros, shared. No shape may have a dimension of 0. Raises UserError where there is no room."""
        header, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors are aligned
        with file.open("xb") as handle:
            handle.write(struct.pack("<Q", len(text)) + text)
            handle.flush()
            try:  # now: a page that finds no room when it is written to would kill the process
                os.posix_fallocate(handle.fileno(), 0, 8 + len(text) + end)
            except OSError as error:
                raise UserError(
                    f"{end / 2**20:.0f} MiB for {file} cannot be had ({error.strerror}): make room there, or set "
                    "cache_dir to a folder that has some"
                ) from None
        return cls(file, shared=True)

    def _tensor(self, name: str, dtype: str, shape: list[int]) -> Tensor:
        flat = torch.frombuffer(self._map, dtype=_TYPES[dtype], count=math.prod(shape), offset=self._first[name])
        return flat.view(shape)

    def release(self, name: str, start: int, end: int) -> None:
        """Give bytes [start, end) of a tensor back, but for the pages at both ends. They stay in the system's page
        cache while there is room, so reading them once more costs page faults, not a read."""
        first, page = self._first[name], mmap.PAGESIZE
        start, end = -(-(first + start) // page) * page, (first + end) // page * page
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def release_all(self) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)
