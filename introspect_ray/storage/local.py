"""A store on this machine's file system (or a mounted share)."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from introspect_ray.errors import Outage, UserError
from introspect_ray.patience import patiently
from introspect_ray.storage.digests import PIECE, Written, copy_hashed, digest_of, in_parallel
from introspect_ray.storage.store import TEMPORARY, Sink, Store, check_name

_PASSING = {errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EAGAIN}  # of a mounted share that is away for a while


@dataclass(frozen=True)
class LocalStore(Store):
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
            shutil.copyfileobj(source, target, PIECE)

    def write_bytes(self, name: str, data: bytes) -> None:
        def write() -> None:
            with replacing(self.local_path(name)) as temporary:
                temporary.write_bytes(data)

        patiently(write)

    def exists(self, name: str) -> bool:
        return self.local_path(name).is_file()

    def list(self, prefix: str = "") -> list[str]:
        root, found = self.local_path(), []
        for folder, below, files in os.walk(self.local_path(prefix)):
            below[:] = [name for name in below if not name.startswith(TEMPORARY)]
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
            with replacing(self.local_path(prefix) / name) as temporary:
                shutil.copyfile(source.local_path(name), temporary)
        return len(names)

    def take_dir(self, local: str | Path, prefix: str = "") -> dict[str, Written]:
        """Files on the file system of the store are moved, others are copied."""
        source = LocalStore(str(Path(local).absolute()))

        def take(name: str) -> Written:
            with replacing(self.local_path(prefix) / name) as temporary:
                return _move_hashed(source.local_path(name), temporary)

        names = source.list()
        return dict(zip(names, in_parallel(take, names), strict=True))

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
                "choose another folder or fix its permissions"
            ) from None


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary file beside `target`: it replaces `target` on success and is removed on failure.

    Raises Outage where a mounted disk does not answer, UserError where there is no room or no permission.
    """
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _PASSING:
            raise Outage(f"cannot write {target}: {error}") from error
        raise UserError(
            f"cannot write {target}: {error}; make room, fix its permissions or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # e.g. its folder is a file: the error above says so
            temporary.unlink()


def _move_hashed(source: Path, target: Path) -> Written:
    """Rename `source` to `target`, or copy it to another file system; either way it is read once."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return copy_hashed(source, target)
    return digest_of(target)
