"""The index of a checkpoint, .metadata, is a pickle: torch.distributed.checkpoint has no other format.

A pickle may call any function while it is read, so it is read here first, by an unpickler that knows nothing but the
index's own classes. The tensors themselves torch reads with weights_only=True
(torch/distributed/checkpoint/filesystem.py).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from introspect_ray.errors import UserError, one_line

NAME = ".metadata"
_OWN = "torch.distributed.checkpoint.metadata"
_KNOWN = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    *(
        (_OWN, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


def check_metadata(folder: str) -> None:
    """Raises UserError for an index that names anything but what torch writes into one, or that cannot be read. Nothing
    else that it names is imported or called."""
    file = Path(folder, NAME)
    try:
        with file.open("rb") as opened:
            _Reader(opened).load()
    except _Foreign as error:
        raise UserError(
            f"checkpoint {folder}: its index names {error}, which no checkpoint needs: this program did not write it, "
            "delete it"
        ) from None
    except Exception as error:  # pickle's own errors have no common class
        raise UserError(f"checkpoint {folder}: its index {NAME} cannot be read ({one_line(error):.120})") from None


class _Foreign(Exception):
    """The message is the name."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and (module, name) not in _KNOWN:
            raise _Foreign(f"{module}.{name}")
        return super().find_class(module, name)
