"""Size and checksum of files, taken while they are read or copied, and several files at a time."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypedDict, TypeVar

PARALLEL_FILES = 8
PIECE = 1 << 22  # bytes per read
Item = TypeVar("Item")
Made = TypeVar("Made")


class Written(TypedDict):
    """What the list of a checkpoint says about a file: its size, and blake2b (16 bytes) as hex digits."""

    bytes: int
    blake2b: str


class Digest:
    """Size and checksum of what is written to it."""

    def __init__(self) -> None:
        self.size, self._hash = 0, hashlib.blake2b(digest_size=16)

    def write(self, data: bytes) -> None:
        """Count and hash `data`."""
        self.size += len(data)
        self._hash.update(data)

    def written(self) -> Written:
        """Size and checksum of all data so far."""
        return {"bytes": self.size, "blake2b": self._hash.hexdigest()}


class HashedReader:
    """A file that is read once, in order, and hashed while it is.

    It has no `seek`: a client that uploads from it keeps a part until the server has it, and repeats it from there.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source, self.digest = source, Digest()

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; all that is left if it is negative."""
        data = self._source.read(size)
        self.digest.write(data)
        return data


def digest_of(path: Path) -> Written:
    """Size and checksum of a local file."""
    with path.open("rb") as source:
        read = hashlib.file_digest(source, lambda: hashlib.blake2b(digest_size=16))
        return {"bytes": source.tell(), "blake2b": read.hexdigest()}


def copy_hashed(source: Path, target: Path) -> Written:
    """Copy a local file; size and checksum of what was read."""
    with source.open("rb") as reader, target.open("wb") as writer:
        hashed = HashedReader(reader)
        while data := hashed.read(PIECE):
            writer.write(data)
        return hashed.digest.written()


def in_parallel(work: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """`work` of each item, in order, for several at a time. Raises the first failure, once all have ended.

    Hashing and file access release Python's lock, so threads share the cores.
    """
    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        return list(pool.map(work, items))


def in_order(work: Callable[[Item], Made], items: Iterable[Item], ahead: int) -> Iterator[Made]:
    """`work` of each item, in order, when it is asked for; meanwhile the next ones, up to `ahead`, are made."""
    with ThreadPoolExecutor(ahead) as pool:
        made: deque[Future[Made]] = deque()
        try:
            for item in items:
                if len(made) == ahead:
                    yield made.popleft().result()
                made.append(pool.submit(work, item))
            while made:
                yield made.popleft().result()
        finally:
            for one in made:
                one.cancel()
