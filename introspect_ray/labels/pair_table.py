"""Behaviour pairs as an Arrow table: about 150 bytes per pair, decoded on access. Those of large sets lie in a mapped
file, and 12 bytes per pair in memory."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from introspect_ray.cases.mapped_file import mapped_batches
from introspect_ray.cases.record_table import CASE_ID, IdIndex, RecordTable, id_key
from introspect_ray.records import BehaviorPair

if TYPE_CHECKING:
    from introspect_ray.labels.reading import Reading

PAIR_SCHEMA = pa.schema(
    [
        pa.field(CASE_ID, pa.string(), nullable=False),
        pa.field("cued", pa.string(), nullable=False),
        pa.field("ablated", pa.string(), nullable=False),
        pa.field("cued_logprobs", pa.list_(pa.float64()), nullable=False),
        pa.field("ablated_logprobs", pa.list_(pa.float64()), nullable=False),
        pa.field("cued_off_format", pa.bool_(), nullable=False),
        pa.field("ablated_off_format", pa.bool_(), nullable=False),
        pa.field("weight_version", pa.int64(), nullable=False),
        pa.field("cued_response", pa.list_(pa.int32()), nullable=False),  # free text: the tokens of M's response to x
        pa.field("ablated_response", pa.list_(pa.int32()), nullable=False),  # and to x∖C; empty for closed labels
    ],
    metadata={"format": "introspect-ray pairs 2"},  # pairs 1 had no responses
)
RESPONSES = ("cued_response", "ablated_response")
BATCH_ROWS = 4096
BATCHES_IN_MEMORY = 16  # of a table; one with more lies in a file


class PairTable(RecordTable[BehaviorPair]):
    """Pairs by row (`table[i]`) and by case id (`table.by_id[case_id]`)."""

    @classmethod
    def build(cls, pairs: Iterable[BehaviorPair]) -> PairTable:
        """The table of `pairs`, which are taken one at a time. Raises ValueError for a case that occurs twice."""
        return cls.from_batches(_batches(iter(pairs)))

    @classmethod
    def from_batches(cls, batches: Iterable[pa.RecordBatch]) -> PairTable:
        """batches: of PAIR_SCHEMA, or of files without responses. Raises ValueError for a case that occurs twice."""
        keys = array("Q")
        mapped: mmap.mmap | None = None
        rest = _noted(batches, keys)
        kept = list(islice(rest, BATCHES_IN_MEMORY))
        if (more := next(rest, None)) is not None:
            kept, mapped = mapped_batches(chain(kept, [more], rest), PAIR_SCHEMA, "labels of M0", None)
        return cls(kept, IdIndex.build(np.asarray(keys)), mapped)

    def read_by(self, reading: Reading, labels: Mapping[str, tuple[str, ...]]) -> PairTable:
        """The pairs as `reading` reads them, still in Arrow. labels: the allowed ones by case id."""
        if reading.calibration is None:
            return self
        rows = iter(self)
        parts: Iterator[list[BehaviorPair]] = iter(lambda: list(islice(rows, BATCH_ROWS)), [])
        return PairTable.build(pair for part in parts for pair in reading.pairs(part, labels))

    @property
    def free_text(self) -> bool:
        """Whether any answer is a free response, which a judge read."""
        return any(len(batch.column(name).flatten()) for batch in self.batches for name in RESPONSES)

    def arrow(self) -> pa.Table:
        """The same rows as an Arrow table of PAIR_SCHEMA, without a copy."""
        return pa.Table.from_batches(self.batches, PAIR_SCHEMA)

    def _open(self, batch: pa.RecordBatch) -> _Columns:
        return _Columns(*(batch.column(name) for name in PAIR_SCHEMA.names))

    def _decode(self, columns: _Columns, row: int) -> BehaviorPair:
        values = (column[row].as_py() for column in columns)
        fields: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
        return BehaviorPair(*fields)


class _Columns(NamedTuple):
    """The columns of a batch, in the order of the fields of BehaviorPair."""

    case_id: pa.Array
    cued: pa.Array
    ablated: pa.Array
    cued_logprobs: pa.Array
    ablated_logprobs: pa.Array
    cued_off_format: pa.Array
    ablated_off_format: pa.Array
    weight_version: pa.Array
    cued_response: pa.Array
    ablated_response: pa.Array


def _noted(batches: Iterable[pa.RecordBatch], keys: array[int]) -> Iterator[pa.RecordBatch]:
    """The batches as they come; the key of each row is added to `keys`."""
    for batch in map(_with_responses, batches):
        keys.extend(map(id_key, batch.column(CASE_ID).to_pylist()))
        yield batch


def _with_responses(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, with empty responses where its file is from before free text."""
    if RESPONSES[0] in batch.schema.names:
        return batch
    empty = pa.array([[]] * batch.num_rows, pa.list_(pa.int32()))
    return pa.RecordBatch.from_arrays([*batch.columns, empty, empty], schema=PAIR_SCHEMA)


def _batches(pairs: Iterator[BehaviorPair]) -> Iterator[pa.RecordBatch]:
    while part := list(islice(pairs, BATCH_ROWS)):
        columns = [[getattr(pair, name) for pair in part] for name in PAIR_SCHEMA.names]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, PAIR_SCHEMA, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=PAIR_SCHEMA)
