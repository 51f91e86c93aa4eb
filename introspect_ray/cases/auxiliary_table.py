"""Auxiliary texts as Arrow columns: 12 bytes per text in memory, their tokens in a mapped file or in shared memory."""

from __future__ import annotations

import hashlib
import mmap
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from introspect_ray.cases.mapped_file import mapped_batches
from introspect_ray.cases.record_table import CASE_ID, IdIndex, RecordTable, id_key
from introspect_ray.records import AuxiliaryText

Ints = NDArray[np.int32]
LISTS = ("tokens", "spans")  # spans: start and end of each run of trained tokens, one after the other
SCHEMA = pa.schema(
    [
        pa.field(CASE_ID, pa.string(), nullable=False),
        *(pa.field(name, pa.list_(pa.int32()), nullable=False) for name in LISTS),
    ]
)
BATCH_TOKENS = 1 << 18


class AuxiliaryTable(RecordTable[AuxiliaryText]):
    """Auxiliary texts by row, decoded on access. `digest` is a hash of their content and order, 16 hex digits."""

    def __init__(
        self, batches: Sequence[pa.RecordBatch], index: IdIndex, digest: str, mapped: mmap.mmap | None = None
    ) -> None:
        """batches: of SCHEMA. mapped: the file they lie in, if any. Raises ValueError if an id occurs twice."""
        self.digest = digest
        super().__init__(batches, index, mapped)

    @classmethod
    def build(cls, texts: Iterable[AuxiliaryText], folder: str | Path | None = None) -> AuxiliaryTable:
        """The table of `texts`, which are taken one at a time and written to a file in `folder` as they come.

        folder: by default the user's cache. The file is unlinked once it is mapped, so it disappears with the table.
        Raises UserError if the folder cannot be written to, ValueError if an id occurs twice.
        """
        keys, digest = array("Q"), hashlib.blake2b(digest_size=8)
        batches, mapped = mapped_batches(_batches(texts, keys, digest), SCHEMA, "tokenized auxiliary texts", folder)
        return cls(batches, IdIndex.build(np.asarray(keys, np.uint64)), digest.hexdigest(), mapped)

    def rows(self, numbers: Iterable[int]) -> list[AuxiliaryText]:
        """The texts of these rows, in their order."""
        return self.take_rows(numbers)

    def _open(self, batch: pa.RecordBatch) -> _Columns:
        return _Columns(
            batch.column(CASE_ID), *((_numpy(c.offsets), _numpy(c.values)) for c in map(batch.column, LISTS))
        )

    def _decode(self, columns: _Columns, row: int) -> AuxiliaryText:
        tokens, spans = (values[ends[row] : ends[row + 1]] for ends, values in (columns.tokens, columns.spans))
        targets = np.zeros(len(tokens), bool)
        for start, end in spans.reshape(-1, 2):
            targets[start:end] = True
        return AuxiliaryText(columns.ids[row].as_py(), tuple(tokens.tolist()), tuple(targets.tolist()))


class _Columns(NamedTuple):
    """A batch as NumPy views: (offsets [rows + 1], values) of each list."""

    ids: pa.Array
    tokens: tuple[Ints, Ints]
    spans: tuple[Ints, Ints]


def spans_of(targets: Sequence[bool]) -> list[int]:
    """Start and end of each run of True. Example: (False, True, True, False, True) -> [1, 3, 4, 5]."""
    padded = np.concatenate([[False], np.asarray(targets, bool), [False]])
    return [int(place) for place in np.flatnonzero(padded[1:] != padded[:-1])]


def _batches(texts: Iterable[AuxiliaryText], keys: array[int], digest: Any) -> Iterator[pa.RecordBatch]:
    """`texts` in batches. Adds their keys to `keys` and their content to `digest`."""
    ids: list[str] = []
    values, ends = {name: array("i") for name in LISTS}, {name: array("i", [0]) for name in LISTS}

    def batch() -> pa.RecordBatch:
        lists = [pa.ListArray.from_arrays(_arrow(ends[name]), _arrow(values[name])) for name in LISTS]
        return pa.RecordBatch.from_arrays([pa.array(ids, pa.string()), *lists], schema=SCHEMA)

    for text in texts:
        ids.append(text.text_id)
        keys.append(id_key(text.text_id))
        for name, added in (("tokens", array("i", text.tokens)), ("spans", array("i", spans_of(text.targets)))):
            values[name].extend(added)
            ends[name].append(len(values[name]))
            digest.update(len(added).to_bytes(4, "little") + added.tobytes())
        if len(values["tokens"]) >= BATCH_TOKENS:
            yield batch()
            ids = []
            values, ends = {name: array("i") for name in LISTS}, {name: array("i", [0]) for name in LISTS}
    if ids:
        yield batch()


# pyarrow's own conversions, to_numpy and pa.array of an array, import pandas (0.3 s).
def _arrow(values: array[int]) -> pa.Int32Array:
    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])


def _numpy(column: pa.Int32Array) -> Ints:
    """An int32 column without nulls, not copied."""
    if not len(column):
        return np.zeros(0, np.int32)
    return np.frombuffer(column.buffers()[1], np.int32, len(column), 4 * column.offset)
