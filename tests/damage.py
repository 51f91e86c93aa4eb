"""Damage to files, for tests: single flipped bits and cuts, drawn from a seed over the whole file."""

from __future__ import annotations

import random
from collections.abc import Iterator


def flips(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[int, bytes]]:
    """`count` copies with one flipped bit each, and where: one in each of `count` equal stretches, so that every
    region of a file is hit."""
    draws = random.Random(seed)
    for i in range(count):
        start, end = len(data) * i // count, max(len(data) * (i + 1) // count, len(data) * i // count + 1)
        at = draws.randrange(start, min(end, len(data)))
        yield at, data[:at] + bytes([data[at] ^ 1 << draws.randrange(8)]) + data[at + 1 :]


def cuts(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """The empty file, one without its last byte, and `count` others that end too early."""
    draws = random.Random(seed)
    yield b""
    yield data[:-1]
    yield from (data[: draws.randrange(1, len(data))] for _ in range(count))
