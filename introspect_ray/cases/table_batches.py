"""How a table of cases is filled: its columns, its answer sets, and its Arrow batches, one case at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from introspect_ray.cases.record_table import CASE_ID, id_key
from introspect_ray.records import Explanation, Templates, TokenizedCase

TOKEN_COLUMNS = ("prompt", "ablated", "question")
TEXT_COLUMNS = ("group", "metadata")  # most files have neither: 8 bytes per case in the mapped file
CASE_SCHEMA = pa.schema(
    [
        pa.field(CASE_ID, pa.string(), nullable=False),
        pa.field("answers", pa.int32(), nullable=False),  # which of the table's answer sets
        *(pa.field(name, pa.list_(pa.int32()), nullable=False) for name in TOKEN_COLUMNS),
        *(pa.field(name, pa.string(), nullable=False) for name in TEXT_COLUMNS),
    ]
)
BATCH_ROWS, BATCH_TOKENS, BATCH_BYTES = 1024, 1 << 18, 1 << 20  # a batch ends where it reaches one of them


class AnswerSet(NamedTuple):
    """The possible answers and explanations of a case; the fields are those of TokenizedCase.

    Sets are Python objects: the cases of a task usually share a few. If each case has labels of its own, there is
    one set per case.
    """

    labels: tuple[str, ...]
    label_tokens: tuple[tuple[int, ...], ...]
    explanations: dict[Explanation, tuple[int, ...]]
    max_response: int
    templates: Templates

    @property
    def longest_response(self) -> int:
        """Most tokens of an answer: of the longest label, or of a free text."""
        return self.max_response or max(map(len, self.label_tokens), default=0)

    @property
    def longest_explanation(self) -> int:
        return max(map(len, self.explanations.values()), default=0)


class AnswerSets:
    """The distinct answer sets of the cases so far, numbered in order of appearance."""

    def __init__(self) -> None:
        self.sets: list[AnswerSet] = []
        self._at: dict[tuple[Any, ...], int] = {}

    def number(self, case: TokenizedCase) -> int:
        """The number of the case's answer set, which is added if it is new."""
        key = (case.labels, case.label_tokens, tuple(case.explanations.items()), case.max_response, case.templates)
        at = self._at.setdefault(key, len(self.sets))
        if at == len(self.sets):
            self.sets.append(
                AnswerSet(case.labels, case.label_tokens, case.explanations, case.max_response, case.templates)
            )
        return at


class _BatchBuilder:
    """A batch that is being filled; its tokens and texts go straight into flat arrays."""

    def __init__(self) -> None:
        self.answers = array("i")
        self.texts = {name: (bytearray(), array("i", [0])) for name in (CASE_ID, *TEXT_COLUMNS)}
        self.offsets = {name: array("i", [0]) for name in TOKEN_COLUMNS}
        self.tokens = {name: array("i") for name in TOKEN_COLUMNS}

    def add(self, case: TokenizedCase, answers: int) -> None:
        self.answers.append(answers)
        for name, (text, ends) in self.texts.items():
            text += getattr(case, name).encode()
            ends.append(len(text))
        for name in TOKEN_COLUMNS:
            self.tokens[name].extend(getattr(case, name))
            self.offsets[name].append(len(self.tokens[name]))

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def full(self) -> bool:
        longest = max(map(len, self.tokens.values()))
        return len(self) >= BATCH_ROWS or longest >= BATCH_TOKENS or len(self.texts["metadata"][0]) >= BATCH_BYTES

    def batch(self) -> pa.RecordBatch:
        lists = [
            pa.ListArray.from_arrays(_arrow(self.offsets[name]), _arrow(self.tokens[name])) for name in TOKEN_COLUMNS
        ]
        ids, *texts = (
            pa.StringArray.from_buffers(len(self), pa.py_buffer(ends), pa.py_buffer(text))
            for text, ends in self.texts.values()
        )
        return pa.RecordBatch.from_arrays([ids, _arrow(self.answers), *lists, *texts], schema=CASE_SCHEMA)


def case_batches(cases: Iterable[TokenizedCase], keys: array[int], answers: AnswerSets) -> Iterator[pa.RecordBatch]:
    """`cases` in batches. Adds their keys and answer sets to `keys` and `answers`."""
    builder = _BatchBuilder()
    for case in cases:
        builder.add(case, answers.number(case))
        keys.append(id_key(case.case_id))
        if builder.full:
            yield builder.batch()
            builder = _BatchBuilder()
    if len(builder):
        yield builder.batch()


# pyarrow's own conversion, pa.array, imports pandas (0.3 s).
def _arrow(values: array[int]) -> pa.Int32Array:
    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])
