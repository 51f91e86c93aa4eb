"""Which ids a stream has had, in a dozen bytes an id."""

from __future__ import annotations

from array import array

from introspect_ray.rng import bits


class Seen:
    """A set of 64-bit hashes: open addressing, at most two thirds full, so 12 to 24 bytes an id of any length."""

    def __init__(self) -> None:
        self._slots, self._used = array("Q", [0]) * 1024, 0

    def add(self, name: str) -> bool:
        """Whether `name` is new. False may be, once in 2^64 / n names, another name of the same hash."""
        if 3 * (self._used + 1) > 2 * len(self._slots):
            self._grow()
        new = _insert(self._slots, bits(name) or 1)
        self._used += new
        return new

    def _grow(self) -> None:
        larger = array("Q", [0]) * (2 * len(self._slots))
        for key in self._slots:
            if key:
                _insert(larger, key)
        self._slots = larger


def _insert(slots: array[int], key: int) -> bool:
    """Put a key (not 0, which marks a free slot) in its place; whether it was not there."""
    mask = len(slots) - 1  # the length is a power of two
    at = key & mask
    while found := slots[at]:
        if found == key:
            return False
        at = (at + 1) & mask
    slots[at] = key
    return True
