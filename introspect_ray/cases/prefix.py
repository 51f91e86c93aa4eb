"""The common prefix of two texts or token sequences. Pure."""

from __future__ import annotations

from typing import TypeVar

S = TypeVar("S", str, tuple[int, ...])


def common_prefix(a: S, b: S) -> int:
    """Length of the common prefix, in characters or tokens. Example: (1, 2, 3), (1, 2, 4) -> 2.

    A bisection over slices, which Python compares in C.
    """
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
