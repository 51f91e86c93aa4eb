"""A reference while it is made: its files get rows in any order, then the index, and then it is put in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from introspect_ray.policy import discard, new_folder
from introspect_ray.storage import open_store
from introspect_ray.training.mapped_tensors import MappedTensors
from introspect_ray.training.output_head import OutputHead
from introspect_ray.training.reference_files import (
    INDEX,
    TENSORS,
    Layout,
    Sums,
    download_cache,
    is_whole,
    row_sums,
    write_index,
)

SIDES = ("cued", "ablated")


class ReferenceWriter:
    """The files of a reference in a folder that nobody reads yet."""

    def __init__(self, folder: Path, layout: Layout, head: OutputHead, dtype: torch.dtype) -> None:
        """head: M0's, which is written here. Raises UserError where the disk has no room for the tensors."""
        self._folder, self._layout, self._scaling = folder, layout, head.scaling
        constants = {"head": head.weight_VH} | ({} if head.bias_V is None else {"bias": head.bias_V})
        shapes = {side: (total, head.weight_VH.shape[1]) for side, total in zip(SIDES, layout.totals, strict=True)}
        shapes |= {name: tuple(tensor.shape) for name, tensor in constants.items()}
        (folder / "tensors").mkdir()
        self._file = MappedTensors.create(folder / TENSORS, shapes, dtype)
        self._sums: dict[str, Sums] = {side: np.zeros(n, np.uint32) for side, n in zip(SIDES, layout.totals)}
        with torch.no_grad():
            for name, tensor in constants.items():
                self._file.tensors[name].copy_(tensor)
        self._constants = {name: tensor.detach().to(dtype) for name, tensor in constants.items()}

    def put(self, case_ids: Sequence[str], hidden_BH: Tensor) -> None:
        """Write the rows of some cases: along M0's responses to x of all of them, then to x∖C of all. On the CPU."""
        rows = self._layout.rows(case_ids)
        halves = hidden_BH.split([len(rows_of_side) for rows_of_side in rows])
        for side, rows_of_side, half in zip(SIDES, rows, halves, strict=True):
            self._file.tensors[side][rows_of_side] = half
            self._sums[side][rows_of_side.numpy()] = row_sums(half)
        self._file.release_all()

    def finish(self, policy: str) -> None:
        """Write the index. policy: its content hash."""
        dtype, positions = next(iter(self._constants.values())).dtype, self._layout.positions
        about: dict[str, Any] = {
            "case_ids": list(self._layout.row),
            "dtype": str(dtype).removeprefix("torch."),
            "policy": policy,
            "scaling": self._scaling,
        }
        responses: Mapping[str, Any] = {} if (positions == 1).all() else {"positions": positions.tolist()}
        write_index(self._folder, {**about, **responses}, self._sums, self._constants)


def publish(out_dir: str, name: str, write: Callable[[Path], None]) -> str:
    """The folder or s3:// prefix of the reference `name` of a cache; `write` makes it unless it is there and whole.

    One that is there is read once and checked; a damaged one is deleted and made again, and a warning says so. A folder
    appears in one rename; on S3 the index is written last, so no reader sees a part.
    """
    store = open_store(out_dir)
    if not is_whole(store, name):
        local = store.local_path(name)
        if local is not None:
            with new_folder(local) as work:
                write(work)
        else:
            cached = download_cache(store.join(name))
            discard(cached)  # a download of what is not there any more
            with new_folder(cached) as work:
                write(work)
            store.upload_dir(cached / "tensors", f"{name}/tensors")
            store.write_bytes(f"{name}/{INDEX}", (cached / INDEX).read_bytes())
    return store.join(name)
