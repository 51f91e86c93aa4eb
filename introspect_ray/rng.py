"""Random numbers without state: hashes of a key, the same in every process, order and library version."""

from __future__ import annotations

import hashlib


def bits(*key: object) -> int:
    """64 uniform bits, a pure function of `key`. repr() keeps ("a", "b") and ("ab", "") apart."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")
