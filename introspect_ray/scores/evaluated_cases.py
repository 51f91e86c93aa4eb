"""What was evaluated: the held-out cases with every policy's behaviour and the trained policy's explanations. Pure.

All metrics of summary.json are a function of these cases alone (evaluation.py). evaluation_table.py keeps them as a
table, so metrics can be recomputed, regrouped or criticised without the policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from introspect_ray.records import BehaviorPair, Explanation

V = TypeVar("V")

M0, POLICY, SECOND = "m0", "policy", "second"  # the untrained, the evaluated and the second policy (mixed runs)
REFERENCE = "reference"  # reference_policy, where it is another one than M0
AGAINST = "against:"  # before the name of a further policy (eval.against), which may be any text
FREE, TRIE = "free", "trie"  # values of eval.decode
DEV, TEST = "dev", "test"  # the splits of the held-out cases: whatever selects looks at dev, results are of test


@dataclass(frozen=True)
class EvaluatedCases:
    """The held-out cases of one evaluation, in order; every sequence has one value per case.

    Raises ValueError if lengths differ, if a pair is of another case than its row, if "m0" or "policy" is missing, or
    if `from_second` is given without the pairs of "second".
    """

    case_ids: Sequence[str]
    groups: Sequence[str]  # "" for a case without a group
    metadata: Sequence[str]  # a JSON object; "" for a case without any
    labels: Sequence[Sequence[str]]  # the allowed labels; for free text the judge's verdicts
    pairs: Mapping[str, Sequence[BehaviorPair]]  # by policy: M0, POLICY, perhaps REFERENCE, SECOND, AGAINST + name
    said: Sequence[str]  # the text of the evaluated policy's explanation
    parsed: Sequence[Explanation | None]  # what it states; None: unparseable
    texts: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)  # by policy, free text alone: the
    # responses to x and to x∖C
    from_second: Sequence[bool] | None = None  # mixed runs: whether the mask takes the label from the second policy
    questions: Sequence[str] = ()  # equal for cases with the same x∖C; (): each case is a question of its own
    splits: Sequence[str] = ()  # DEV or TEST; (): all are TEST
    decode: str = FREE  # how the explanations were read (eval.decode): FREE, or TRIE, where all are valid by force

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", self.questions or list(self.case_ids))
        object.__setattr__(self, "splits", self.splits or [TEST] * len(self))
        columns: dict[str, Sequence[object]] = {"groups": self.groups, "metadata": self.metadata, "labels": self.labels}
        columns |= {"said": self.said, "parsed": self.parsed, "questions": self.questions, "splits": self.splits}
        columns |= {} if self.from_second is None else {"from_second": self.from_second}
        columns |= {f"pairs of {name!r}": pairs for name, pairs in self.pairs.items()}
        columns |= {f"texts of {name!r}": texts for name, texts in self.texts.items()}
        for name, values in columns.items():
            if len(values) != len(self):
                raise ValueError(f"{len(self)} evaluated cases, but {len(values)} {name}")
        if self.decode not in (FREE, TRIE):
            raise ValueError(f"explanations are read as {FREE!r} or {TRIE!r}, not as {self.decode!r}")
        if not set(self.splits) <= {DEV, TEST}:
            raise ValueError(
                f"the splits of evaluated cases are {DEV!r} and {TEST!r}; they hold {sorted(set(self.splits))}"
            )
        for name in (M0, POLICY, *([] if self.from_second is None else [SECOND]), *self.texts):
            if name not in self.pairs:
                raise ValueError(f"evaluated cases need the pairs of {name!r}; they have those of {sorted(self.pairs)}")
        for name, pairs in self.pairs.items():
            for case_id, pair in zip(self.case_ids, pairs, strict=True):
                if pair.case_id != case_id:
                    raise ValueError(f"case {case_id!r} has a pair of {name!r} that is of case {pair.case_id!r}")

    def __len__(self) -> int:
        return len(self.case_ids)

    @property
    def orig(self) -> str:
        """The policy whose behaviour counts as the original one: the reference, M0 where there is no other."""
        return REFERENCE if REFERENCE in self.pairs else M0

    def truth(self, policy: str) -> list[Explanation]:
        """E of a policy, per case."""
        return [pair.explanation for pair in self.pairs[policy]]

    def at(self, rows: Sequence[int]) -> EvaluatedCases:
        """The cases of some rows, in the order of `rows`."""

        def taken(values: Sequence[V]) -> list[V]:
            return [values[row] for row in rows]

        return EvaluatedCases(
            case_ids=taken(self.case_ids),
            groups=taken(self.groups),
            metadata=taken(self.metadata),
            labels=taken(self.labels),
            pairs={name: taken(pairs) for name, pairs in self.pairs.items()},
            said=taken(self.said),
            parsed=taken(self.parsed),
            texts={name: taken(texts) for name, texts in self.texts.items()},
            from_second=None if self.from_second is None else taken(self.from_second),
            questions=taken(self.questions),
            splits=taken(self.splits),
            decode=self.decode,
        )

    def of(self, split: str) -> EvaluatedCases:
        """The cases of one split: "dev" or "test"."""
        return self.at([row for row, its in enumerate(self.splits) if its == split])

    def by_group(self) -> dict[str, EvaluatedCases]:
        """The cases of each group, in the order in which groups first appear; {} where no case has a group."""
        rows: dict[str, list[int]] = {}
        for row, group in enumerate(self.groups):
            rows.setdefault(group, []).append(row)
        return {group: self.at(members) for group, members in rows.items()} if any(rows) else {}
