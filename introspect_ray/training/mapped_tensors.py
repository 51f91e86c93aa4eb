"""Tensors of a safetensors file that are mapped into memory, to be read and written in place.

The safetensors library maps a file too, but it cannot give pages back, and it writes a file only from tensors that are
all in memory.
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
    """`tensors` by name, float32 or bfloat16. What is written to those of a file opened for reading is lost."""

    def __init__(self, file: Path, shared: bool = False) -> None:
        """shared: what is written to the tensors goes to the file."""
        with file.open("r+b" if shared else "rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))  # of the header, a JSON object that follows
            header = json.loads(handle.read(size))
            self._map = mmap.mmap(handle.fileno(), 0, flags=mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE)
        self._offsets = {name: 8 + size + info["data_offsets"][0] for name, info in header.items()}
        self.tensors = {name: self._tensor(name, info["dtype"], info["shape"]) for name, info in header.items()}

    @staticmethod
    def header_bytes(file: Path) -> bytes:
        """What comes before the tensors of a file: the length of the JSON object and the object itself."""
        with file.open("rb") as handle:
            length = handle.read(8)
            return length + handle.read(struct.unpack("<Q", length)[0])

    @classmethod
    def create(cls, file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> MappedTensors:
        """A new file of zeros, opened as shared. No dimension may be 0. Raises UserError where the disk has no room."""
        header, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors are aligned
        with file.open("xb") as handle:
            handle.write(struct.pack("<Q", len(text)) + text)
            handle.flush()
            try:  # reserve the room now: a page without room kills the process when it is written to
                os.posix_fallocate(handle.fileno(), 0, 8 + len(text) + end)
            except OSError as error:
                raise UserError(
                    f"{file} needs {end / 2**20:.0f} MiB, which the disk does not give ({error.strerror}): make room "
                    "there, or set cache_dir to a folder that has room"
                ) from None
        return cls(file, shared=True)

    def _tensor(self, name: str, dtype: str, shape: list[int]) -> Tensor:
        flat = torch.frombuffer(self._map, dtype=_TYPES[dtype], count=math.prod(shape), offset=self._offsets[name])
        return flat.view(shape)

    def release(self, name: str, start: int, end: int) -> None:
        """Give back the memory of bytes [start, end) of a tensor, except for the page at either end.

        The pages stay in the system's page cache while there is room, so reading them again costs page faults but no
        disk access.
        """
        offset, page = self._offsets[name], mmap.PAGESIZE
        start, end = -(-(offset + start) // page) * page, (offset + end) // page * page
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def release_all(self) -> None:
        """Give back the memory of all tensors."""
        self._map.madvise(mmap.MADV_DONTNEED)
