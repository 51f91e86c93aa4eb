"""The interface of a store, and what every store shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from introspect_ray.errors import UserError

TEMPORARY = ".tmp-"  # prefix of files being written; never listed


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes, /) -> Any: ...


class Store(Protocol):
    """A folder, local or remote. Names are relative, with forward slashes; "" is the folder itself."""

    uri: str

    def read_bytes(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def read_into(self, name: str, target: Sink) -> None:
        """Write the content of `name` to `target` in order, in pieces, whatever its size. Raises FileNotFoundError."""
        ...

    def write_bytes(self, name: str, data: bytes) -> None:
        """Create or replace `name`; a reader sees the old content or the new, never a part."""
        ...

    def exists(self, name: str) -> bool:
        """Whether `name` is a file."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """Names of all files in folder `prefix` and below, sorted, relative to the store."""
        ...

    def delete_prefix(self, prefix: str = "") -> int:
        """Delete the file or folder `prefix` and return how many files went."""
        ...

    def read_json(self, name: str) -> Any:
        """Raises FileNotFoundError, and UserError for what is not JSON."""
        ...

    def write_json(self, name: str, value: Any) -> None:
        """Indented JSON, atomic. Raises ValueError for NaN and infinities, which JSON has not."""
        ...

    def upload_dir(self, local: str | Path, prefix: str = "") -> int:
        """Copy all files below `local` into folder `prefix`; returns how many. Each file is atomic, the set is not."""
        ...

    def download_dir(self, prefix: str, local: str | Path) -> int:
        """Copy all files of folder `prefix` into `local`; returns how many. Raises FileNotFoundError if none."""
        ...

    def local_path(self, name: str = "") -> Path | None:
        """The path on this machine, or None for a remote store."""
        ...

    def join(self, *parts: str) -> str:
        """The URI of something in the store."""
        ...

    def check_writable(self) -> None:
        """Raise UserError with the remedy if nothing can be written here. Leaves nothing behind."""
        ...


def check_name(name: str) -> str:
    """`name` itself if it stays inside its store. Raises ValueError for absolute names and for `..`."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"name {name!r} leaves its store")
    return name


class JsonFiles:
    """read_json and write_json in terms of bytes, for every store."""

    def read_json(self: Any, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise UserError(f"{self.join(name)} is not valid JSON ({error}): delete it or restore it") from None

    def write_json(self: Any, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")
