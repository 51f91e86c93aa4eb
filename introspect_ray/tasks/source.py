"""What a task gives: raw rows, and how a row becomes a case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from introspect_ray.config import TaskConfig
from introspect_ray.records import Case

T = TypeVar("T")


@dataclass(frozen=True)
class CaseSource:
    """The raw rows of one file or data set, and how one of them becomes a case.

    Example: CaseSource("cases.jsonl line", lambda: text_lines(Path("cases.jsonl")), case_from_line).
    """

    where: str  # names the rows in messages, where the number of a row follows (from 1): "cases.jsonl line 7"
    rows: Callable[[], Iterable[Any]]  # reads from the start at every call, always the same rows
    to_case: Callable[[Any, str], Case]  # (row, "cases.jsonl line 7") -> case; UserError if the row is wrong
    drop_repeats: bool = False  # drop a case that has the id of an earlier one, instead of refusing the file

    def cases(self, only: Iterable[int] | None = None) -> Iterator[tuple[int, Case]]:
        """(row number, case) of all rows in order, or of the rows with the numbers `only`, which ascend.

        Raises UserError at a row that is wrong.
        """
        numbered = enumerate(self.rows(), start=1)
        for number, row in numbered if only is None else _picked(numbered, only):
            yield number, self.to_case(row, f"{self.where} {number}")


# The sources of the training cases and of the held-out cases. Without the second, `load_cases` holds out some of the
# training cases. A task checks its part of the config (UserError) and reads no rows yet.
Task = Callable[[TaskConfig], tuple[CaseSource, CaseSource | None]]


def _picked(numbered: Iterable[tuple[int, T]], only: Iterable[int]) -> Iterator[tuple[int, T]]:
    """The items whose number is in `only`; both ascend."""
    wanted = iter(only)
    want = next(wanted, None)
    for number, item in numbered:
        if want is None:
            return
        if number == want:
            yield number, item
            want = next(wanted, None)
