"""evaluation/cases.parquet: what was evaluated, one row per held-out case, and the way back from it.

Every metric of summary.json is a function of this table alone, so it can be recomputed, regrouped or criticised without
the policies. Columns: case_id, group; for each policy p ("m0", "policy", further ones by name) p.cued and p.ablated
(the labels y(x), y(x∖C)), p.cued_logprobs and p.ablated_logprobs (natural, one per label; empty for free text),
p.cued_off_format and p.ablated_off_format, p.cued_text and p.ablated_text (the responses, free text alone), p.changed
and p.content (its explanation E); said (the trained policy's explanation as it was written), said_changed and
said_content (as it was parsed; null: unparseable).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from introspect_ray.records import BehaviorPair, Explanation

FORMAT = {"format": "introspect-ray evaluated cases 1"}
NAME = "evaluation/cases.parquet"


@dataclass(frozen=True)
class EvaluatedCases:
    """The held-out cases of one evaluation, in order; all sequences have one entry per case.

    pairs: behaviour by policy name; "m0" and "policy" are always there. said: the explanation's text; parsed: what it
    states, None where it cannot be parsed.
    """

    case_ids: Sequence[str]
    groups: Sequence[str]
    labels: Sequence[Sequence[str]]
    pairs: Mapping[str, Sequence[BehaviorPair]]
    said: Sequence[str]
    parsed: Sequence[Explanation | None]
    texts: Mapping[str, Sequence[tuple[str, str]]]  # responses by policy name; {} for closed labels

    def __len__(self) -> int:
        return len(self.case_ids)

    def truth(self, policy: str) -> list[Explanation]:
        """E of a policy."""
        return [pair.explanation for pair in self.pairs[policy]]

    def where(self, rows: Sequence[int]) -> EvaluatedCases:
        """The cases of some rows."""

        def some(values: Sequence) -> list:  # type: ignore[type-arg]
            return [values[row] for row in rows]

        return EvaluatedCases(
            some(self.case_ids),
            some(self.groups),
            some(self.labels),
            {name: some(pairs) for name, pairs in self.pairs.items()},
            some(self.said),
            some(self.parsed),
            {name: some(texts) for name, texts in self.texts.items()},
        )

    def by_group(self) -> dict[str, EvaluatedCases]:
        """The cases of each group, in the order in which groups first appear; {} where no case has a group."""
        rows: dict[str, list[int]] = {}
        for row, group in enumerate(self.groups):
            rows.setdefault(group, []).append(row)
        return {group: self.where(those) for group, those in rows.items()} if set(rows) != {""} else {}


def to_table(cases: EvaluatedCases) -> pa.Table:
    """The table of the module's docstring."""
    columns: dict[str, pa.Array] = {
        "case_id": pa.array(cases.case_ids, pa.string()),
        "group": pa.array(cases.groups, pa.string()),
        "labels": pa.array([list(labels) for labels in cases.labels], pa.list_(pa.string())),
    }
    for name, pairs in cases.pairs.items():
        for side in ("cued", "ablated"):
            columns[f"{name}.{side}"] = pa.array([getattr(pair, side) for pair in pairs], pa.string())
            logprobs = [list(getattr(pair, f"{side}_logprobs")) for pair in pairs]
            columns[f"{name}.{side}_logprobs"] = pa.array(logprobs, pa.list_(pa.float64()))
            off = [getattr(pair, f"{side}_off_format") for pair in pairs]
            columns[f"{name}.{side}_off_format"] = pa.array(off, pa.bool_())
        if name in cases.texts:
            columns[f"{name}.cued_text"] = pa.array([cued for cued, _ in cases.texts[name]], pa.string())
            columns[f"{name}.ablated_text"] = pa.array([ablated for _, ablated in cases.texts[name]], pa.string())
        columns[f"{name}.weight_version"] = pa.array([pair.weight_version for pair in pairs], pa.int64())
        columns[f"{name}.changed"] = pa.array([pair.explanation.changed for pair in pairs], pa.bool_())
        columns[f"{name}.content"] = pa.array([pair.explanation.content for pair in pairs], pa.string())
    columns["said"] = pa.array(cases.said, pa.string())
    columns["said_changed"] = pa.array([None if e is None else e.changed for e in cases.parsed], pa.bool_())
    columns["said_content"] = pa.array([None if e is None else e.content for e in cases.parsed], pa.string())
    return pa.table(columns, metadata=FORMAT)


def from_table(table: pa.Table) -> EvaluatedCases:
    """The inverse of to_table."""
    names = [name.removesuffix(".content") for name in table.column_names if name.endswith(".content")]
    get = {name: table[name].to_pylist() for name in table.column_names}
    pairs = {
        name: [
            BehaviorPair(case_id, cued, ablated, tuple(cued_lp), tuple(ablated_lp), cued_off, ablated_off, version)
            for case_id, cued, ablated, cued_lp, ablated_lp, cued_off, ablated_off, version in zip(
                get["case_id"],
                get[f"{name}.cued"],
                get[f"{name}.ablated"],
                get[f"{name}.cued_logprobs"],
                get[f"{name}.ablated_logprobs"],
                get[f"{name}.cued_off_format"],
                get[f"{name}.ablated_off_format"],
                get[f"{name}.weight_version"],
                strict=True,
            )
        ]
        for name in names
    }
    texts = {
        name: list(zip(get[f"{name}.cued_text"], get[f"{name}.ablated_text"], strict=True))
        for name in names
        if f"{name}.cued_text" in get
    }
    parsed = [
        None if content is None else Explanation(changed, content)
        for changed, content in zip(get["said_changed"], get["said_content"], strict=True)
    ]
    labels = [tuple(labels) for labels in get["labels"]]
    return EvaluatedCases(get["case_id"], get["group"], labels, pairs, get["said"], parsed, texts)
