"""Tokenized cases as Arrow columns: 12 bytes per case in memory, their tokens in a mapped file or in shared memory.

A token takes 4 bytes here, against some 36 in Python objects. What cases of one task share (labels and explanations)
is kept once.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from introspect_ray.cases.mapped_file import mapped_batches
from introspect_ray.cases.record_table import CASE_ID, IdIndex, RecordTable
from introspect_ray.cases.table_batches import (
    CASE_SCHEMA,
    TEXT_COLUMNS,
    TOKEN_COLUMNS,
    AnswerSet,
    AnswerSets,
    case_batches,
)
from introspect_ray.records import TokenizedCase

Ints = NDArray[np.int32]
LOOKED_AT = 1 << 26  # tokens of which `used_tokens` takes note: 256 MiB of the file


class CaseTable(RecordTable[TokenizedCase]):
    """Cases by row (`table[i]`) and by id (`table.by_id[case_id]`), decoded on access, in microseconds."""

    def __init__(
        self,
        batches: Sequence[pa.RecordBatch],
        index: IdIndex,
        answers: Sequence[AnswerSet],
        mapped: mmap.mmap | None = None,
    ) -> None:
        """batches: of CASE_SCHEMA. mapped: the file they lie in, if any. Raises ValueError if an id occurs twice."""
        self.answers = tuple(answers)
        super().__init__(batches, index, mapped)

    @classmethod
    def build(cls, cases: Iterable[TokenizedCase], folder: str | Path | None = None) -> CaseTable:
        """The table of `cases`, which are taken one at a time and written to a file in `folder` as they come.

        folder: by default the user's cache. The file is unlinked once it is mapped, so it disappears with the table.
        Raises UserError if the folder cannot be written to, ValueError if an id occurs twice.
        """
        keys, answers = array("Q"), AnswerSets()
        batches, mapped = mapped_batches(case_batches(cases, keys, answers), CASE_SCHEMA, "tokenized cases", folder)
        return cls(batches, IdIndex.build(np.asarray(keys)), answers.sets, mapped)

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """The allowed labels by case id, in the order of rows."""
        batches = [batch.select([CASE_ID, "answers"]) for batch in self.batches]
        return LabelTable(batches, self._index, [used.labels for used in self.answers]).by_id

    @property
    def longest_question(self) -> int:
        """Most tokens of any q. Without cases this and the other lengths are 0."""
        return max((int(self._lengths(batch, "question").max()) for batch in self.batches), default=0)

    @property
    def longest_explanation(self) -> int:
        """Most tokens of any explanation, its end of turn included."""
        return max((used.longest_explanation for used in self.answers), default=0)

    @property
    def longest_explained(self) -> int:
        """Most tokens of any q together with the longest explanation of its case."""
        return self._longest(("question",), [used.longest_explanation for used in self.answers])

    @property
    def longest_answered(self) -> int:
        """Most tokens of any x or x∖C together with the longest answer of its case."""
        return self._longest(TOKEN_COLUMNS[:2], [used.longest_response for used in self.answers])

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence: x or x∖C with its answer, or q with its explanation."""
        return max(self.longest_answered, self.longest_explained)

    @property
    def longest_tree_path(self) -> int:
        """Most tokens on a path of a training tree: x or x∖C with its answer but for the answer's last token, after
        which nothing is predicted, or q with its explanation."""
        return max(self.longest_answered - 1, self.longest_explained)

    def used_tokens(self, vocabulary: int) -> NDArray[np.bool_]:
        """[vocabulary] whether a case has the token in a prompt, an answer or an explanation; of the first LOOKED_AT
        tokens of prompts. Raises IndexError for a token beyond the vocabulary."""
        used, seen = np.zeros(vocabulary, np.bool_), 0
        for answers in self.answers:
            for tokens in (*answers.label_tokens, *answers.explanations.values()):
                used[list(tokens)] = True
        for batch in self.batches:
            for name in TOKEN_COLUMNS:
                values = _numpy(batch.column(name).values)
                used[values] = True
                seen += len(values)
            self._release()
            if seen >= LOOKED_AT:
                break
        return used

    def _longest(self, columns: Sequence[str], more: Sequence[int]) -> int:
        """Most tokens in any of these columns together with the tokens `more` of the case's answer set."""
        added = np.array(more, np.int32)
        return max(
            (
                int((self._lengths(b, name) + added[_numpy(b.column("answers"))]).max())
                for b in self.batches
                for name in columns
            ),
            default=0,
        )

    @staticmethod
    def _lengths(batch: pa.RecordBatch, name: str) -> Ints:
        return np.diff(_numpy(batch.column(name).offsets))

    def _open(self, batch: pa.RecordBatch) -> _Columns:
        lists = (batch.column(name) for name in TOKEN_COLUMNS)
        views = [(_numpy(column.offsets), _numpy(column.values)) for column in lists]
        texts = (batch.column(name) for name in TEXT_COLUMNS)
        return _Columns(batch.column(CASE_ID), _numpy(batch.column("answers")), *views, *texts)

    def _decode(self, columns: _Columns, row: int) -> TokenizedCase:
        used = self.answers[columns.answers[row]]
        prompt, ablated, question = (
            tuple(values[offsets[row] : offsets[row + 1]].tolist())
            for offsets, values in (columns.prompt, columns.ablated, columns.question)
        )
        return TokenizedCase(
            columns.ids[row].as_py(),
            used.labels,
            used.label_tokens,
            prompt,
            ablated,
            question,
            used.explanations,
            used.max_response,
            used.templates,
            columns.group[row].as_py(),
            columns.metadata[row].as_py(),
        )


class LabelTable(RecordTable[tuple[str, ...]]):
    """The allowed labels of cases, without the cases' tokens."""

    def __init__(self, batches: Sequence[pa.RecordBatch], index: IdIndex, labels: Sequence[tuple[str, ...]]) -> None:
        self._labels = tuple(labels)
        super().__init__(batches, index)

    def _open(self, batch: pa.RecordBatch) -> Ints:
        return _numpy(batch.column("answers"))

    def _decode(self, columns: Ints, row: int) -> tuple[str, ...]:
        return self._labels[columns[row]]


class _Columns(NamedTuple):
    """A batch as NumPy views: (offsets [rows + 1], tokens) of each sequence."""

    ids: pa.Array
    answers: Ints
    prompt: tuple[Ints, Ints]
    ablated: tuple[Ints, Ints]
    question: tuple[Ints, Ints]
    group: pa.Array
    metadata: pa.Array


# pyarrow's own conversion, to_numpy, imports pandas (0.3 s).
def _numpy(column: pa.Int32Array) -> Ints:
    """An int32 column without nulls, not copied."""
    if not len(column):
        return np.zeros(0, np.int32)
    return np.frombuffer(column.buffers()[1], np.int32, len(column), 4 * column.offset)


def cases_of(tables: Sequence[CaseTable], case_ids: Sequence[str]) -> list[TokenizedCase]:
    """The cases of these ids, in their order: one call per table. Raises KeyError for an id that is in no table."""
    found: dict[str, TokenizedCase] = {}
    for table in tables:
        here = [case_id for case_id in case_ids if case_id not in found and case_id in table.by_id]
        found.update(zip(here, table.take(here), strict=True))
    return [found[case_id] for case_id in case_ids]
