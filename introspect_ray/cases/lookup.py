"""Records by case id or by row, a batch per call: from a table that decodes them, or from any other container. Pure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

V = TypeVar("V")


class RecordMapping(Mapping[str, V]):
    """A mapping by case id that finds a whole batch in one call. Its order is that of `case_ids`."""

    @property
    @abstractmethod
    def case_ids(self) -> Sequence[str]:
        """The ids in order, without a copy of them."""

    @abstractmethod
    def take(self, case_ids: Iterable[str]) -> list[V]:
        """The records of these ids, in the order of the ids. Raises KeyError for an unknown one."""


class RecordSequence(Sequence[V]):
    """A sequence that finds a whole batch of rows in one call."""

    @abstractmethod
    def take_rows(self, rows: Iterable[int]) -> list[V]:
        """The records of these rows, in the order of the rows. Raises IndexError for an unknown one."""


def records_at(records: Sequence[V], rows: Iterable[int]) -> list[V]:
    """The records of a batch of rows, in their order. Raises IndexError for an unknown row."""
    return records.take_rows(rows) if isinstance(records, RecordSequence) else [records[row] for row in rows]


def records_of(by_id: Mapping[str, V], case_ids: Iterable[str]) -> list[V]:
    """The records of a batch of cases, in the order of `case_ids`. Raises KeyError for an unknown id."""
    return by_id.take(case_ids) if isinstance(by_id, RecordMapping) else [by_id[case_id] for case_id in case_ids]


def ids_of(by_id: Mapping[str, V]) -> Sequence[str]:
    """The ids of a mapping in its order; those of a table are not copied."""
    return by_id.case_ids if isinstance(by_id, RecordMapping) else list(by_id)
