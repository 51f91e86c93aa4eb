"""The parts of a bulk label set: which rows each one has, its file, its columns, and where its labels come from. Pure.

A part is a range of rows of all cases, training before held-out ones. It begins and ends at a group of
rollout.group_size cases, so that engines compute the same cases together as in the set-up of a run: the pairs are the
same, bit for bit. A part is one file, written whole or not at all; which are missing is seen from the names alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from introspect_ray import __version__
from introspect_ray.cases import table_file
from introspect_ray.cases.table import CaseTable
from introspect_ray.config import RunConfig
from introspect_ray.judges import JudgeReport
from introspect_ray.labels.label_sets import engine_version
from introspect_ray.labels.pair_table import PAIR_SCHEMA, PairTable
from introspect_ray.records import BehaviorPair, Explanation

FOLDER = "pairs"  # of the parts, in output_dir
GROUPS_PER_PART = 8
PROVENANCE, JUDGED = b"provenance", b"judged"  # keys of a part's metadata, both JSON
ABOUT = [
    pa.field("side", pa.string(), nullable=False),  # "train" or "test": the side of the task
    pa.field("source_model", pa.string(), nullable=False),  # the policy's name in the config
    pa.field("policy_digest", pa.string(), nullable=False),
    pa.field("judge", pa.string(), nullable=False),  # identity; "" for closed labels
    pa.field("cued_text", pa.string()),  # free text: the response to x; null for closed labels
    pa.field("ablated_text", pa.string()),
    pa.field("said", pa.string()),  # the policy's explanation as it wrote it; null where none was asked for
    pa.field("said_changed", pa.bool_()),  # what it states; null: unparseable
    pa.field("said_content", pa.string()),
]


class Part(NamedTuple):
    """A range of rows. Example: Part(512, 512) is rows-00000512-00001023.parquet."""

    first: int
    cases: int

    @property
    def name(self) -> str:
        """Its file in output_dir."""
        return f"{FOLDER}/rows-{self.first:08d}-{self.first + self.cases - 1:08d}.parquet"


def parts_of(cases: int, group_size: int) -> list[Part]:
    """The parts of a set of `cases` rows, in order: GROUPS_PER_PART groups each, the last one what is left."""
    size = GROUPS_PER_PART * group_size
    return [Part(first, min(size, cases - first)) for first in range(0, cases, size)]


def missing_parts(parts: Iterable[Part], present: Iterable[str]) -> list[Part]:
    """The parts without a file. present: the names in output_dir."""
    there = set(present)
    return [part for part in parts if part.name not in there]


def cases_digest(tables: Iterable[CaseTable]) -> str:
    """16 hex digits over the ids, tokens, labels and response lengths of all cases, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for case in (case for table in tables for case in table):
        line = [case.case_id, case.labels, case.label_tokens, case.prompt, case.ablated, case.question]
        digest.update(json.dumps([*line, case.max_response]).encode() + b"\n")
    return digest.hexdigest()


def provenance(
    cfg: RunConfig, policy_digest: str, tables: Sequence[CaseTable], judge: str, max_explanation: int | None
) -> dict[str, Any]:
    """What decides a label set, as JSON values by name; the package's version stands by.

    policy_digest: content hash of the policy. judge: identity of the judge; "" for closed labels. max_explanation: most
    tokens of an explanation; None: none is asked for.
    """
    task = json.dumps(cfg.task.model_dump(mode="json"), sort_keys=True)
    numerics = ("dtype", "group_size", "max_batched_tokens", "threads", "tensor_parallel_size")
    return {
        "policy": cfg.policy,
        "policy_digest": policy_digest,
        "task": cfg.task.name,
        "task_digest": hashlib.blake2b(task.encode(), digest_size=8).hexdigest(),
        "cases_digest": cases_digest(tables),
        "cases": {side: len(table) for side, table in zip(("train", "test"), tables, strict=True)},
        "calibration": cfg.task.calibration,  # of the readers: the pairs are raw, reading.json has the offsets
        "judge": judge,
        "engine": cfg.rollout.served_by,
        "engine_version": engine_version(cfg.rollout.served_by),
        **{f"engine_{name}": getattr(cfg.rollout, name) for name in numerics},
        "engine_group_size": cfg.rollout.bulk_group,
        "method": cfg.method,
        "max_explanation_tokens": max_explanation,
        "package_version": __version__,
    }


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first name in which two provenances differ, package versions aside; None if they are of one label set."""
    names = (name for name in now if name != "package_version")
    return next((name for name in names if before.get(name) != now[name]), None)


class Answered(NamedTuple):
    """What a policy answered to the cases of a part, in their order."""

    pairs: Sequence[BehaviorPair]
    texts: Sequence[tuple[str, str] | None]  # the responses to x and x∖C; None for closed labels
    said: Sequence[tuple[str, Explanation | None]] | None  # None: no explanations were asked for
    judged: JudgeReport | None


def part_bytes(answered: Answered, sides: Sequence[str], source: Mapping[str, Any]) -> bytes:
    """A part as Parquet. sides: "train" or "test" for each pair. source: of `provenance`."""
    table, rows = PairTable.build(answered.pairs).arrow(), len(answered.pairs)
    said: Sequence[tuple[str, Explanation | None] | None] = answered.said or [None] * rows
    stated = [one[1] if one else None for one in said]
    columns: dict[str, list[Any]] = {
        "side": list(sides),
        "source_model": [source["policy"]] * rows,
        "policy_digest": [source["policy_digest"]] * rows,
        "judge": [source["judge"] if text else "" for text in answered.texts],
        "cued_text": [text and text[0] for text in answered.texts],
        "ablated_text": [text and text[1] for text in answered.texts],
        "said": [one and one[0] for one in said],
        "said_changed": [one and one.changed for one in stated],
        "said_content": [one and one.content for one in stated],
    }
    for field in ABOUT:
        table = table.append_column(field, pa.array(columns[field.name], field.type))
    judged = answered.judged.summary() if answered.judged else None
    about = {PROVENANCE: json.dumps(dict(source)), JUDGED: json.dumps(judged)}
    return table_file.to_bytes(table.replace_schema_metadata({**(PAIR_SCHEMA.metadata or {}), **about}))


def report_of(metadata: Mapping[bytes, bytes] | None) -> JudgeReport | None:
    """What the judges made of a part, from its metadata; None for closed labels."""
    judged = json.loads((metadata or {}).get(JUDGED, b"null"))
    return JudgeReport.from_summary(judged) if judged else None
