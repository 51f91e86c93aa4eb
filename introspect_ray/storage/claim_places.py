"""Where a claim is kept: a file in a local folder, or an object on S3. Both can be created and replaced only as seen.

A claim is two things: the owner, some bytes that stay, and a mark that changes with every sign of life. To compare and
replace in one step, S3 has conditional puts (If-None-Match, If-Match); a local file is replaced under its own lock.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from introspect_ray.errors import UserError
from introspect_ray.patience import patiently
from introspect_ray.storage.s3 import S3Store
from introspect_ray.storage.store import TEMPORARY, Store

NAME = ".introspect-ray.claim"
_CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}  # S3's codes for: not as you saw it


@dataclass(frozen=True)
class Found:
    """A claim as it was read."""

    owner: bytes
    mark: str


class Place(Protocol):
    """Where the claim of one folder is."""

    def read(self) -> Found | None:
        """The claim that is there."""
        ...

    def create(self, owner: bytes) -> bool:
        """Put a claim where there is none. False: there is one."""
        ...

    def replace(self, seen: Found, owner: bytes) -> bool:
        """Put a claim in place of the one that was seen. False: it is not there any more, or has a newer mark."""
        ...

    def beat(self, owner: bytes) -> bool:
        """A sign of life: change the mark of the own claim. False: the claim that is there is another's, or none."""
        ...

    def remove(self, owner: bytes) -> None:
        """Delete the own claim; one of another owner stays."""
        ...


def place_of(store: Store) -> Place:
    """The place of a folder's claim."""
    folder = store.local_path()
    return LocalPlace(folder / NAME) if folder is not None else S3Place(S3Store(store.uri))


@dataclass(frozen=True)
class LocalPlace:
    """A file. Its mark is its time of modification, so that a sign of life needs no room on a full disk."""

    path: Path

    def read(self) -> Found | None:
        try:
            with self.path.open("rb") as file:  # on NFS opening a file brings its attributes up to date
                return Found(file.read(), _mark(file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create(self, owner: bytes) -> bool:
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = self.path.open("xb", buffering=0)
            except FileExistsError:
                return False
            with file:
                try:
                    file.write(owner)
                except OSError:
                    self.path.unlink()
                    raise
        return True

    def replace(self, seen: Found, owner: bytes) -> bool:
        with self._errors(), self._locked() as file:
            if file is None or Found(os.pread(file, 1 << 16, 0), _mark(file)) != seen:
                return False
            temporary = self.path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
            try:
                temporary.write_bytes(owner)
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def beat(self, owner: bytes) -> bool:
        with self._locked() as file:
            ours = file is not None and os.pread(file, 1 << 16, 0) == owner
            if ours:
                os.utime(self.path)
        return ours

    def remove(self, owner: bytes) -> None:
        with self._locked() as file:
            if file is not None and os.pread(file, 1 << 16, 0) == owner:
                self.path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The file that is there, locked against other replacements; None if there is none, or another one by now."""
        try:
            file = os.open(self.path, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        try:
            with suppress(OSError):  # a file system without locks: two that take over in the same millisecond both may
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                there = os.path.samestat(os.fstat(file), os.stat(self.path))
            except FileNotFoundError:
                there = False
            yield file if there else None
        finally:
            os.close(file)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error}; make room, fix its permissions or choose another folder"
            ) from error


def _mark(file: int) -> str:
    status = os.fstat(file)
    return f"{status.st_ino}-{status.st_mtime_ns}"


@dataclass(frozen=True)
class S3Place:
    """An object: the owner, and below it the number of signs of life, so that each changes the ETag."""

    store: S3Store

    def read(self) -> Found | None:
        return patiently(self._read)

    def _read(self) -> Found | None:
        try:
            with self.store._errors(NAME) as client:
                answer = client.get_object(Bucket=self.store.bucket, Key=self.store._key(NAME))
                content: bytes = answer["Body"].read()
        except FileNotFoundError:
            return None
        owner, _, beats = content.rpartition(b"\n")
        return Found(owner, f"{int(beats) if beats.isdigit() else 0} {answer['ETag']}")

    def create(self, owner: bytes) -> bool:
        return self._put(owner, 0, IfNoneMatch="*") and self._is_there(owner)

    def replace(self, seen: Found, owner: bytes) -> bool:
        return self._put(owner, 0, IfMatch=seen.mark.partition(" ")[2]) and self._is_there(owner)

    def beat(self, owner: bytes) -> bool:
        seen = self.read()
        if seen is None or seen.owner != owner:
            return False
        beats, _, tag = seen.mark.partition(" ")
        return self._put(owner, int(beats) + 1, IfMatch=tag)

    def remove(self, owner: bytes) -> None:
        seen = self.read()
        if seen is not None and seen.owner == owner:
            with self.store._errors(NAME) as client:
                client.delete_object(Bucket=self.store.bucket, Key=self.store._key(NAME))

    def _put(self, owner: bytes, beats: int, **condition: str) -> bool:
        """Put the claim if the condition holds; whether it is there. A refusal may be the answer to a put that was
        repeated because the answer to the first was lost: what is there then says."""
        from botocore.exceptions import ClientError

        put: Any = {"Bucket": self.store.bucket, "Key": self.store._key(NAME)}
        put["Body"] = owner + b"\n" + str(beats).encode()

        def once() -> bool:
            with self.store._errors(NAME) as client:
                try:
                    client.put_object(**put, **condition)
                except ClientError as error:
                    code = error.response["Error"].get("Code", "")
                    if code in _CHANGED:
                        return False
                    if code != "NotImplemented":
                        raise
                    client.put_object(**put)  # a service without conditional puts
            return True

        return patiently(once) or self._is_there(owner)

    def _is_there(self, owner: bytes) -> bool:
        """Of two that a service without conditions let write at once, the last one has it."""
        there = self.read()
        return there is not None and there.owner == owner
