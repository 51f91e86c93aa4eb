"""A run's label table, <output_dir>/labels/*.parquet, in a local folder or on S3: every label that was used, with its
provenance."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc

from introspect_ray.cases import table_file
from introspect_ray.errors import UserError
from introspect_ray.records import Explanation, Label, Provenance
from introspect_ray.storage import Store, open_store

LABEL_SCHEMA = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("changed", pa.bool_(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
        pa.field("current_changed", pa.bool_()),  # E of the pair sampled for it; null for fixed and mixed labels
        pa.field("current_content", pa.string()),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("source_model", pa.string(), nullable=False),
        pa.field("cued_version", pa.int64(), nullable=False),
        pa.field("ablated_version", pa.int64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),  # the training step that uses it; -1: made outside training
        pa.field("flipped", pa.bool_(), nullable=False),
        pa.field("draw", pa.float64(), nullable=False),  # NaN for fixed labels
        pa.field("judge", pa.string(), nullable=False),  # "" for closed labels; tables of version 0.1 lack it
        pa.field("calibration", pa.string(), nullable=False),  # "" without calibration; likewise
    ],
    metadata={"format": "introspect-ray labels 2"},
)
_FORMAT_1 = b"introspect-ray labels 1"  # of version 0.1: without the columns _LATER
_LATER = ("judge", "calibration")  # "" in every label of version 0.1, which had neither
_PROVENANCE = [field.name for field in fields(Provenance)]
FLUSH_ROWS = 4096
_OF_A_RUN = "restore it from a copy, or make the whole run again (--overwrite): labels are not made again one by one"


def labels_to_table(labels: Sequence[Label]) -> pa.Table:
    """One row per label, in order; the columns of LABEL_SCHEMA."""
    current = [label.current or (None, None) for label in labels]
    columns = {
        "case_id": [label.case_id for label in labels],
        "changed": [label.explanation[0] for label in labels],
        "content": [label.explanation[1] for label in labels],
        "current_changed": [changed for changed, _ in current],
        "current_content": [content for _, content in current],
        **{name: [getattr(label.provenance, name) for label in labels] for name in _PROVENANCE},
    }
    return pa.Table.from_arrays(
        [pa.array(columns[field.name], field.type) for field in LABEL_SCHEMA], schema=LABEL_SCHEMA
    )


def labels_from_table(table: pa.Table) -> list[Label]:
    """The inverse of `labels_to_table`."""
    return [
        Label(
            case_id=row["case_id"],
            explanation=Explanation(row["changed"], row["content"]),
            current=None
            if row["current_content"] is None
            else Explanation(row["current_changed"], row["current_content"]),
            provenance=Provenance(**{name: row[name] for name in _PROVENANCE if name in row}),
        )
        for row in table.to_pylist()
    ]


@dataclass
class LabelCounts:
    """Totals of a label table, added up one part at a time."""

    labels: int = 0
    sampled: int = 0  # labels that a pair was sampled for (online)
    agreeing: int = 0  # of those, labels equal to E of the pair
    split_pairs: int = 0  # labels whose y(x) and y(x∖C) come from different weight versions; must be 0

    def add(self, table: pa.Table) -> None:
        """Add the labels of a table that has at least the columns COUNTED."""
        self.labels += len(table)
        self.sampled += table["current_content"].length() - table["current_content"].null_count
        self.agreeing += count_true(agrees(table))
        self.split_pairs += count_true(pc.not_equal(table["cued_version"], table["ablated_version"]))

    @property
    def agreement(self) -> float | None:
        """Share of the sampled labels that equal E of their pair; None if none was sampled (fixed, mixed)."""
        return self.agreeing / self.sampled if self.sampled else None


COUNTED = ["changed", "content", "current_changed", "current_content", "cued_version", "ablated_version"]


def agrees(table: pa.Table) -> pa.ChunkedArray:
    """Whether each label equals E of the pair sampled for it; false if none was."""
    same = [pc.equal(table[name], table[f"current_{name}"]) for name in ("changed", "content")]
    return pc.fill_null(pc.and_(*same), False)


def count_true(column: pa.ChunkedArray) -> int:
    return pc.sum(column).as_py() or 0


def count_labels(uri: str) -> LabelCounts:
    """The totals of the label table at `uri`, read one part at a time. Raises UserError if a part is damaged."""
    counts = LabelCounts()
    for table in read_tables(uri, COUNTED):
        counts.add(table)
    return counts


class LabelWriter:
    """Appends labels to the table at `uri`. Each flush writes one part file with one row group, atomically.

    Part files are named by the steps they span, e.g. steps-00000000-00000063.parquet. Labels that are not flushed are
    lost with the process: call `flush` with every checkpoint and `close` at the end.
    """

    def __init__(self, uri: str, flush_rows: int = FLUSH_ROWS) -> None:
        self._store, self._flush_rows = open_store(uri), flush_rows
        self._buffer: list[Label] = []
        self._numbers: dict[str, int] = {}  # steps of a part -> number of the last part of these steps

    def append(self, labels: Sequence[Label]) -> None:
        """Buffer `labels`; write a part once `flush_rows` are buffered. Raises UserError if that fails."""
        self._buffer += labels
        if len(self._buffer) >= self._flush_rows:
            self.flush()

    def flush(self) -> None:
        """Write the buffered labels, if there are any."""
        if self._buffer:
            self._store.write_bytes(self._free_name(), table_file.to_bytes(labels_to_table(self._buffer), True))
            self._buffer.clear()

    def close(self) -> None:
        self.flush()

    def _free_name(self) -> str:
        steps = [label.provenance.step for label in self._buffer]
        span = "fixed" if max(steps) < 0 else f"steps-{max(min(steps), 0):08d}-{max(steps):08d}"
        number = self._numbers.get(span, -1) + 1
        while self._store.exists(_part_name(span, number)):  # from before a resume
            number += 1
        self._numbers[span] = number
        return _part_name(span, number)


def truncate_labels(uri: str, step: int) -> int:
    """Drop the labels of `step` and later, which a run resumed at `step` makes again. Returns how many were dropped.

    Reads all parts, so that a run does not go on with damaged ones to find them at its end. Raises UserError for one.
    """
    store, dropped = open_store(uri), 0
    for name in _parts(store):
        table = _read(store, name, _OF_A_RUN)
        if _last_step(name) < step:
            continue
        kept = table.filter(pc.less(table["step"], step))
        if len(kept) == len(table):
            continue
        dropped += len(table) - len(kept)
        if len(kept):
            store.write_bytes(name, table_file.to_bytes(kept, True))
        else:
            store.delete_prefix(name)
    return dropped


def read_tables(uri: str, columns: list[str] | None = None, remedy: str = _OF_A_RUN) -> Iterator[pa.Table]:
    """The label table at `uri`, one part at a time in the order of steps; all columns, or `columns` only.

    Parts of version 0.1 get the columns that they lack. Raises UserError with `remedy` if a part is damaged.
    """
    store = open_store(uri)
    for name in _parts(store):
        table = _read(store, name, remedy, columns)
        yield table if columns else _with_later(table)


def _with_later(table: pa.Table) -> pa.Table:
    """The table, with empty columns _LATER if it is of version 0.1."""
    if (table.schema.metadata or {}).get(b"format") != _FORMAT_1:
        return table
    for name in _LATER:
        if name not in table.column_names:
            table = table.append_column(LABEL_SCHEMA.field(name), pa.array([""] * len(table), pa.string()))
    return table


def read_labels(uri: str) -> Iterator[Label]:
    """All labels of the table at `uri`, streamed. Raises UserError if a part is damaged."""
    for table in read_tables(uri):
        yield from labels_from_table(table)


def _part_name(span: str, number: int) -> str:
    """`number` counts the parts of the same steps, from 0."""
    return f"{span}.{number}.parquet" if number else f"{span}.parquet"


def _parts(store: Store) -> list[str]:
    return [name for name in store.list() if name.endswith(".parquet")]


def _last_step(part: str) -> float:
    """The last step of a part, from its name; infinity if the name does not say."""
    found = re.fullmatch(r"steps-\d+-(\d+)(\.\d+)?\.parquet", part)
    return int(found[1]) if found else math.inf


def _read(store: Store, name: str, remedy: str, columns: list[str] | None = None) -> pa.Table:
    try:
        return table_file.from_bytes(store.read_bytes(name), columns)
    except ValueError as error:
        raise UserError(f"{store.join(name)} is damaged ({error}): {remedy}") from None
