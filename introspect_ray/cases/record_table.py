"""Records in Arrow batches, decoded on access: a sequence by row, a mapping by case id.

A table costs 12 bytes per record besides its Arrow buffers. These may lie in a mapped file or in shared memory: pickle
protocol 5 passes them out of band, so that all processes of a Ray node read one copy.
"""

from __future__ import annotations

import mmap
from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from introspect_ray.cases.lookup import RecordMapping, RecordSequence
from introspect_ray.rng import bits

V = TypeVar("V")
CASE_ID = "case_id"  # the column, string, that every table has
RELEASE_EVERY = 64  # rows read one after the other before the pages of the mapped file are released


def id_key(case_id: str) -> int:
    """The 64-bit hash by which an id is found; the same in every process."""
    return bits(case_id)


@dataclass(frozen=True)
class IdIndex:
    """Rows by the hash of their id, 12 bytes per row. Hashes may collide: the caller compares the ids."""

    keys: NDArray[np.uint64]  # [n], ascending
    rows: NDArray[np.int32]  # [n], ascending among equal keys
    key: Callable[[str], int] = id_key

    @classmethod
    def build(cls, keys: NDArray[np.uint64], key: Callable[[str], int] = id_key) -> IdIndex:
        """keys: [n], the key of each row's id."""
        order = np.argsort(keys, kind="stable").astype(np.int32)
        return cls(keys[order], order, key)

    def candidates(self, case_id: str) -> Iterator[int]:
        """All rows whose id may be this one: several if hashes collide or ids repeat."""
        wanted = self.key(case_id)
        at = bisect_left(self.keys, wanted)
        while at < len(self.keys) and self.keys[at] == wanted:
            yield int(self.rows[at])
            at += 1

    def ambiguous(self) -> NDArray[np.int32]:
        """Rows that share their key with an earlier row."""
        same: NDArray[np.int32] = self.rows[1:][self.keys[1:] == self.keys[:-1]]
        return same


class RecordTable(RecordSequence[V]):
    """Immutable records, one per row, each id once. Subclasses say how a row of a batch is decoded."""

    def __init__(self, batches: Sequence[pa.RecordBatch], index: IdIndex, mapped: mmap.mmap | None = None) -> None:
        """mapped: the file that the batches lie in, if any. Raises ValueError for an id that occurs twice."""
        self.batches, self._index, self._mapped = tuple(batches), index, mapped
        self._ends = list(accumulate(batch.num_rows for batch in self.batches))
        self._columns: dict[int, Any] = {}  # by batch: what `_open` made of it
        for row in index.ambiguous().tolist():
            if next(r for r in index.candidates(self.case_id(row)) if self.case_id(r) == self.case_id(row)) != row:
                raise ValueError(f"case id {self.case_id(row)!r} occurs twice")

    @abstractmethod
    def _open(self, batch: pa.RecordBatch) -> Any:
        """What `_decode` needs of a batch; made once per batch."""

    @abstractmethod
    def _decode(self, columns: Any, row: int) -> V:
        """The record of a row of an opened batch."""

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, row: int) -> V: ...
    @overload
    def __getitem__(self, row: slice) -> list[V]: ...
    def __getitem__(self, row: int | slice) -> V | list[V]:
        """A record, or for a slice a list of records."""
        if isinstance(row, slice):
            return self.take_rows(range(*row.indices(len(self))))
        return self.take_rows((row,))[0]

    def __iter__(self) -> Iterator[V]:
        for at, batch in enumerate(self.batches):
            columns = self._opened(at)
            for row in range(batch.num_rows):
                yield self._decode(columns, row)
                if row % RELEASE_EVERY == 0:
                    self._release()

    def case_id(self, row: int) -> str:
        at, row = self._find(row)
        case_id: str = self.batches[at].column(CASE_ID)[row].as_py()
        return case_id

    @property
    def case_ids(self) -> Sequence[str]:
        """The ids by row, read from the table on access."""
        return CaseIds(self)

    @property
    def by_id(self) -> ById[V]:
        """The records by case id, in the order of rows."""
        return ById(self)

    def row(self, case_id: str) -> int:
        """The row of an id. Raises KeyError for an unknown one."""
        for row in self._index.candidates(case_id):
            if self.case_id(row) == case_id:
                return row
        raise KeyError(case_id)

    def take(self, case_ids: Iterable[str]) -> list[V]:
        """The records of a batch of ids, in the order of the ids. Raises KeyError for an unknown one."""
        return self.take_rows(map(self.row, case_ids))

    def take_rows(self, rows: Iterable[int]) -> list[V]:
        found = [self._decode(*self._locate(row)) for row in rows]
        self._release()
        return found

    def _find(self, row: int) -> tuple[int, int]:
        """(number of the batch, row in it). Raises IndexError."""
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        at = bisect_right(self._ends, row)
        return at, row - (self._ends[at - 1] if at else 0)

    def _locate(self, row: int) -> tuple[Any, int]:
        """(opened batch, row in it)"""
        at, row = self._find(row)
        return self._opened(at), row

    def _opened(self, at: int) -> Any:
        columns = self._columns.get(at)
        if columns is None:
            columns = self._columns[at] = self._open(self.batches[at])
        return columns

    def _release(self) -> None:
        """Take the pages that were read out of this process's memory; they stay in the system's page cache."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}, "_mapped": None}


class CaseIds(Sequence[str]):
    """The ids of a table by row, decoded on access."""

    def __init__(self, table: RecordTable[Any]) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self._table.case_id(i) for i in range(*row.indices(len(self)))]
        return self._table.case_id(row)


class ById(RecordMapping[V]):
    """The records of a table by case id, decoded on access, in the order of rows."""

    def __init__(self, table: RecordTable[V]) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.case_ids)

    def __getitem__(self, case_id: str) -> V:
        return self.table[self.table.row(case_id)]

    def __contains__(self, case_id: object) -> bool:
        """Without decoding the record."""
        try:
            return isinstance(case_id, str) and self.table.row(case_id) >= 0
        except KeyError:
            return False

    def values(self) -> Sequence[V]:  # type: ignore[override]
        return self.table

    @property
    def case_ids(self) -> Sequence[str]:
        return self.table.case_ids

    def take(self, case_ids: Iterable[str]) -> list[V]:
        return self.table.take(case_ids)
