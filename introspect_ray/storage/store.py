"""The interface of a store, with what local and S3 stores share."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

from introspect_ray.errors import UserError
from introspect_ray.storage.digests import Written

TEMPORARY = ".tmp-"  # prefix of the names of files and folders that are being written; `list` leaves them out


class Sink(Protocol):
    """Anything that bytes can be written to."""

    def write(self, data: bytes, /) -> Any: ...


class Store(ABC):
    """A folder, local or remote. Names are relative, with forward slashes; "" is the folder itself."""

    uri: str

    @abstractmethod
    def read_bytes(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

    @abstractmethod
    def read_into(self, name: str, target: Sink) -> None:
        """Write the content of `name` to `target` in order, in pieces, whatever its size. Raises FileNotFoundError."""

    @abstractmethod
    def write_bytes(self, name: str, data: bytes) -> None:
        """Create or replace `name`. A reader sees the old content or the new one, never a part."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether `name` is a file."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """The names of all files in folder `prefix` and below it, sorted, relative to the store."""

    @abstractmethod
    def delete_prefix(self, prefix: str = "") -> int:
        """Delete the file or folder `prefix`; returns the number of files deleted."""

    @abstractmethod
    def upload_dir(self, local: str | Path, prefix: str = "") -> int:
        """Copy all files below `local` into folder `prefix`; returns their number. Each file is atomic, the set is
        not."""

    @abstractmethod
    def take_dir(self, local: str | Path, prefix: str = "") -> dict[str, Written]:
        """Bring all files below `local` into folder `prefix`, several at a time, each read at most once: it is hashed
        meanwhile. Returns size and checksum by name, relative to `local`, which may be left without them. Each file is
        atomic, the set is not."""

    @abstractmethod
    def download_dir(self, prefix: str, local: str | Path) -> int:
        """Copy all files of folder `prefix` into `local`; returns their number. Raises FileNotFoundError if none."""

    @abstractmethod
    def local_path(self, name: str = "") -> Path | None:
        """The path on this machine, or None for a remote store."""

    @abstractmethod
    def join(self, *parts: str) -> str:
        """The URI of something in the store."""

    @abstractmethod
    def check_writable(self) -> None:
        """Raise UserError with the remedy if nothing can be written here. Leaves nothing behind."""

    def read_json(self, name: str) -> Any:
        """Raises FileNotFoundError, and UserError for a file that is not JSON."""
        try:
            return json.loads(self.read_bytes(name))
        except (ValueError, RecursionError) as error:
            remedy = "restore it from a copy, or make its folder again (--overwrite)"
            raise UserError(f"{self.join(name)} is not valid JSON ({error}): {remedy}") from None

    def write_json(self, name: str, value: Any) -> None:
        """Indented JSON, atomic. Raises ValueError for NaN and infinities, which JSON lacks."""
        self.write_bytes(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def check_name(name: str) -> str:
    """`name` itself if it stays inside its store. Raises ValueError for absolute names and for `..`."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"name {name!r} leaves its store")
    return name
