"""evaluation/*.parquet: the evaluated cases as a table, one row per held-out case, and their metrics from it.

Columns: case_id, question (equal for cases with the same x∖C), split ("dev" or "test"), group ("" for none), metadata
(a JSON object, "" for none) and labels (the allowed ones). For each policy p ("m0", "policy", "reference" where that is
not M0, in mixed runs "second", and "against:NAME" for each of eval.against): p.cued and p.ablated (the answers y(x) and
y(x∖C) as labels), p.cued_logprobs and p.ablated_logprobs (natural, one per label; empty for free text),
p.cued_off_format and p.ablated_off_format, p.weight_version, p.changed and p.content (its explanation E), and for free
text p.cued_text and p.ablated_text (the responses). said: the evaluated policy's explanation as it was written;
said_changed and said_content: as it was parsed, null where it is unparseable. Mixed runs: from_second, whether the
mixture's label is the second policy's. The schema's metadata holds "format" and "policies", a JSON list, and "decode"
where explanations were not generated freely (eval.decode). Further columns are ignored.
Tables of format 1 lack question and split: each of their cases is read as a question of its own, and as test.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pyarrow as pa

from introspect_ray.cases import table_file
from introspect_ray.records import BehaviorPair, Explanation
from introspect_ray.scores.evaluated_cases import FREE, TEST, EvaluatedCases
from introspect_ray.scores.evaluation import against_scores, evaluate

# In an output folder: M0 before training, the trained policy (summary.json), and eval.policy (evaluation.json).
UNTRAINED, TRAINED, EVALUATED = (f"evaluation/{name}.parquet" for name in ("untrained", "cases", "evaluated"))
FORMAT = "introspect-ray evaluated cases 2"
_FORMATS = ("introspect-ray evaluated cases 1", FORMAT)  # that can be read
_SINCE_2 = ("question", "split")
_PAIR = {  # the fields of BehaviorPair after case_id, in order
    "cued": pa.string(),
    "ablated": pa.string(),
    "cued_logprobs": pa.list_(pa.float64()),
    "ablated_logprobs": pa.list_(pa.float64()),
    "cued_off_format": pa.bool_(),
    "ablated_off_format": pa.bool_(),
    "weight_version": pa.int64(),
}
_TEXTS = ("cued_text", "ablated_text")


def recompute(table: pa.Table) -> dict[str, Any]:
    """The metrics of an evaluation from its table alone.

    Returns "cases" (those of the test split), the blocks of `evaluation.evaluate`, and "against": explanation scores
    by further policy. Raises ValueError for a table without test cases, and as `from_table` does.
    """
    cases = from_table(table)
    return {"cases": len(cases.of(TEST)), **evaluate(cases), "against": against_scores(cases)}


def to_table(cases: EvaluatedCases) -> pa.Table:
    """The table of the module's docstring."""
    columns: dict[str, Iterable[Any]] = {"case_id": cases.case_ids, "question": cases.questions, "split": cases.splits}
    columns |= {"group": cases.groups, "metadata": cases.metadata, "labels": cases.labels}
    for policy, pairs in cases.pairs.items():
        columns |= {f"{policy}.{name}": [getattr(pair, name) for pair in pairs] for name in _PAIR}
        columns[f"{policy}.changed"], columns[f"{policy}.content"] = _parts(cases.truth(policy))
    for policy, texts in cases.texts.items():
        for side, name in enumerate(_TEXTS):
            columns[f"{policy}.{name}"] = [both[side] for both in texts]
    columns["said"] = cases.said
    columns["said_changed"], columns["said_content"] = _parts(cases.parsed)
    if cases.from_second is not None:
        columns["from_second"] = cases.from_second
    schema = _schema(FORMAT, list(cases.pairs), cases.texts, cases.from_second is not None)
    if cases.decode != FREE:
        schema = schema.with_metadata({**schema.metadata, "decode": cases.decode})
    return pa.Table.from_arrays([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def from_table(table: pa.Table) -> EvaluatedCases:
    """The inverse of `to_table`; all sequences are lists, labels and logprobs are tuples.

    Raises ValueError, naming what is wrong, if the table is of another format, lacks a column, has one of another type
    or with nulls, or states an explanation that does not follow from its answers.
    """
    found, policies = _format_and_policies(table)
    names = set(table.column_names)
    with_texts = [policy for policy in policies if any(f"{policy}.{name}" in names for name in _TEXTS)]
    get = _checked_columns(table, _schema(found, policies, with_texts, "from_second" in names))
    pairs = {policy: _pairs(get, policy) for policy in policies}
    parsed = []
    for case_id, changed, content in zip(get["case_id"], get["said_changed"], get["said_content"], strict=True):
        if (changed is None) is not (content is None):
            raise ValueError(f"case {case_id!r}: one of said_changed and said_content is null and the other is not")
        parsed.append(None if content is None else Explanation(changed, content))
    return EvaluatedCases(
        case_ids=get["case_id"],
        groups=get["group"],
        metadata=get["metadata"],
        labels=[tuple(labels) for labels in get["labels"]],
        pairs=pairs,
        said=get["said"],
        parsed=parsed,
        texts={p: list(zip(*(get[f"{p}.{name}"] for name in _TEXTS), strict=True)) for p in with_texts},
        from_second=get.get("from_second"),
        questions=get.get("question", ()),
        splits=get.get("split", ()),
        decode=(table.schema.metadata or {}).get(b"decode", FREE.encode()).decode(errors="replace"),
    )


def to_parquet(table: pa.Table) -> bytes:
    """The bytes of the file, with a checksum of all of them. Equal tables give equal bytes (of one version of
    pyarrow)."""
    return table_file.to_bytes(table)


def read_parquet(data: bytes) -> pa.Table:
    """The inverse of `to_parquet`. Raises ValueError if the bytes are no Parquet file, or damaged."""
    try:
        return table_file.from_bytes(data)
    except ValueError as error:
        remedy = "restore the file from a copy, or make its run again (--overwrite)"
        raise ValueError(f"no readable Parquet file ({error}): {remedy}") from None


def _schema(found: str, policies: Sequence[str], with_texts: Collection[str], mixed: bool) -> pa.Schema:
    """found: the format of the table."""
    names = ("case_id", *(_SINCE_2 if found == FORMAT else ()), "group", "metadata")
    types: dict[str, pa.DataType] = dict.fromkeys(names, pa.string())
    types["labels"] = pa.list_(pa.string())
    for policy in policies:
        types |= {f"{policy}.{name}": kind for name, kind in _PAIR.items()}
        types |= {f"{policy}.{name}": pa.string() for name in _TEXTS if policy in with_texts}
        types |= {f"{policy}.changed": pa.bool_(), f"{policy}.content": pa.string()}
    types |= {"said": pa.string(), "said_changed": pa.bool_(), "said_content": pa.string()}
    types |= {"from_second": pa.bool_()} if mixed else {}
    nullable = {"said_changed", "said_content"}
    fields = [pa.field(name, kind, nullable=name in nullable) for name, kind in types.items()]
    return pa.schema(fields, metadata={"format": found, "policies": json.dumps(list(policies))})


def _format_and_policies(table: pa.Table) -> tuple[str, list[str]]:
    """The format and the names of the policies, from the metadata. Raises ValueError for a table of another format."""
    metadata = table.schema.metadata or {}
    found = metadata.get(b"format", b"").decode(errors="replace")
    if found not in _FORMATS:
        raise ValueError(f"no table of evaluated cases: its metadata says format {found!r} instead of {FORMAT!r}")
    try:
        policies = json.loads(metadata[b"policies"])
    except (KeyError, ValueError):
        policies = None
    if not isinstance(policies, list) or not all(isinstance(name, str) for name in policies):
        raise ValueError('a damaged table of evaluated cases: its metadata holds no JSON list "policies"')
    return found, policies


def _checked_columns(table: pa.Table, schema: pa.Schema) -> dict[str, list[Any]]:
    """The values of every column of the schema. Raises ValueError for missing columns, other types and nulls."""
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise ValueError(f"a table of evaluated cases lacks {len(missing)} columns: {', '.join(missing)}")
    for field in schema:
        column = table[field.name]
        if column.type != field.type:
            raise ValueError(f"column {field.name} holds {column.type}, not {field.type}")
        if column.null_count and not field.nullable:
            raise ValueError(f"column {field.name} has {column.null_count} nulls; each case needs a value")
    return {name: table[name].to_pylist() for name in schema.names}


def _pairs(get: dict[str, list[Any]], policy: str) -> list[BehaviorPair]:
    """The pairs of a policy. Raises ValueError if its explanation of a case is not the one its answers give."""
    columns = (get[f"{policy}.{name}"] for name in _PAIR)
    pairs = [
        BehaviorPair(case_id, cued, ablated, tuple(cued_logprobs), tuple(ablated_logprobs), *rest)
        for case_id, cued, ablated, cued_logprobs, ablated_logprobs, *rest in zip(get["case_id"], *columns, strict=True)
    ]
    stated = zip(get[f"{policy}.changed"], get[f"{policy}.content"], strict=True)
    for pair, explanation in zip(pairs, stated, strict=True):
        if pair.explanation != explanation:
            raise ValueError(
                f"case {pair.case_id!r}: {policy}.changed and {policy}.content say {explanation}, but the answers "
                f"{pair.cued!r} and {pair.ablated!r} give {tuple(pair.explanation)}"
            )
    return pairs


def _parts(explanations: Sequence[Explanation | None]) -> tuple[list[bool | None], list[str | None]]:
    """(changed, content) of each explanation; null where there is none."""
    return [None if e is None else e.changed for e in explanations], [
        None if e is None else e.content for e in explanations
    ]
