"""Files of a run, by URI: local folders and s3:// prefixes behind one small interface.

A store is opened on a URI and then takes names relative to it ("labels/part.parquet"). Writes are
atomic: locally a temporary file in the same folder and a rename, on S3 a put. Stores hold nothing but
their URI, so they can be pickled into another process.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from introspect_ray import __version__
from introspect_ray.errors import UserError

MARKER = ".introspect-ray.json"
"""Written into every output folder by prepare_output; --overwrite deletes only folders that have it."""
_PIECE = 1 << 22  # bytes read at a time
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


def is_remote(uri: str | Path) -> bool:
    """Whether `uri` is an s3:// URI. Raises UserError for any other scheme than s3 and file."""
    scheme, sep, _ = str(uri).partition("://")
    if not sep or scheme == "file":
        return False
    if scheme != "s3":
        raise UserError(
            f"storage {str(uri)!r}: scheme {scheme!r} is not supported, use a local path or s3://bucket/prefix"
        )
    return True


def open_store(uri: str | Path) -> Store:
    """A store on a local folder (need not exist) or an s3:// prefix. Opening does no I/O. Raises UserError."""
    if is_remote(uri):
        from introspect_ray.storage.s3 import S3Store

        return S3Store(str(uri).rstrip("/"))
    return LocalStore(str(Path(str(uri).removeprefix("file://")).expanduser().absolute()))


def check_writable(uri: str | Path) -> None:
    """Preflight: raise a UserError with the remedy if `uri` cannot be written to."""
    open_store(uri).check_writable()


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


@dataclass(frozen=True)
class LocalStore(JsonFiles):
    """A folder on this machine's file system (or a mounted share)."""

    uri: str

    def local_path(self, name: str = "") -> Path:
        return Path(self.uri) / check_name(name)

    def join(self, *parts: str) -> str:
        return str(self.local_path("/".join(parts)))

    def read_bytes(self, name: str) -> bytes:
        return self.local_path(name).read_bytes()

    def read_into(self, name: str, target: Sink) -> None:
        with self.local_path(name).open("rb") as source:
            shutil.copyfileobj(source, target, _PIECE)

    def write_bytes(self, name: str, data: bytes) -> None:
        with self._replacing(self.local_path(name)) as temporary:
            temporary.write_bytes(data)

    @contextmanager
    def _replacing(self, target: Path) -> Iterator[Path]:
        """A temporary sibling of `target` that takes its place on success and is removed on failure."""
        temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, target)
        except OSError as error:
            raise UserError(
                f"cannot write {target}: {error}; make room, fix its rights or choose another folder"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def exists(self, name: str) -> bool:
        return self.local_path(name).is_file()

    def list(self, prefix: str = "") -> list[str]:
        root, found = self.local_path(), []
        for folder, _, files in os.walk(self.local_path(prefix)):
            found += [(Path(folder) / f).relative_to(root).as_posix() for f in files if not f.startswith(TEMPORARY)]
        return sorted(found)

    def delete_prefix(self, prefix: str = "") -> int:
        path = self.local_path(prefix)
        if path.is_file() or path.is_symlink():
            path.unlink()
            return 1
        count = len(self.list(prefix))
        if path.is_dir():
            shutil.rmtree(path)
        return count

    def upload_dir(self, local: str | Path, prefix: str = "") -> int:
        source = LocalStore(str(Path(local).absolute()))
        names = source.list()
        for name in names:
            with self._replacing(self.local_path(prefix) / name) as temporary:
                shutil.copyfile(source.local_path(name), temporary)
        return len(names)

    def download_dir(self, prefix: str, local: str | Path) -> int:
        count = LocalStore(str(Path(local).absolute())).upload_dir(self.local_path(prefix))
        if not count:
            raise FileNotFoundError(f"no files in {self.join(prefix)}")
        return count

    def check_writable(self) -> None:
        folder = Path(self.uri)
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise UserError(f"output folder {self.uri}: {folder} is a file; choose another folder")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"output folder {self.uri}: {folder} is not writable ({error.strerror}); "
                "choose another folder or fix its rights"
            ) from None


def check_output(uri: str | Path, resume: bool = False, overwrite: bool = False) -> Store:
    """The store of an output folder that may be used: writable, and empty or ours and `resume` or `overwrite` given.

    Changes nothing. Raises UserError with the remedy.
    """
    store = open_store(uri)
    if resume and overwrite:
        raise UserError(
            "--resume and --overwrite exclude each other: --resume continues a run, --overwrite deletes it first"
        )
    store.check_writable()
    names = store.list()
    if names and MARKER not in names and (resume or overwrite):
        raise UserError(
            f"output folder {store.uri} holds {len(names)} files but no {MARKER}: this program did not make it, "
            "so it is left alone; choose another output_dir or remove it yourself"
        )
    if names and not (resume or overwrite):
        raise UserError(
            f"output folder {store.uri} is not empty ({len(names)} files): "
            "pass --resume to continue, --overwrite to delete it first, or choose another output_dir"
        )
    return store


def prepare_output(uri: str | Path, resume: bool = False, overwrite: bool = False) -> Store:
    """The store of a run's output folder, checked by `check_output` and marked as made by this program.

    A non-empty folder is kept with `resume` and emptied with `overwrite`; `resume` of an empty folder
    starts afresh, so a job that is restarted by a cluster can always pass it.
    """
    store = check_output(uri, resume, overwrite)
    names = store.list()
    if names and overwrite:
        _empty(store, names)
    if not (names and resume):
        store.write_json(MARKER, {"made_by": "introspect-ray", "version": __version__})
    return store


def _empty(store: Store, names: list[str]) -> None:
    """Delete a run's files, the marker last (an interrupted deletion can be repeated); the folder itself stays."""
    folder = store.local_path()
    if folder is not None:
        resolved, kept = folder.resolve(), (Path.home().resolve(), Path.cwd().resolve())
        if any(resolved == path or resolved in path.parents for path in kept):
            raise UserError(f"--overwrite: {folder} is or holds your home or working folder; choose another output_dir")
        tops = sorted({child.name for child in folder.iterdir()} - {MARKER})
    else:
        tops = sorted({name.split("/")[0] for name in names} - {MARKER})
    for top in tops:
        store.delete_prefix(top)
