"""The two sides of a task, training and held-out, as streams that hold no text in memory."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect_ray.cases.split import choice_key, chosen, held_out, question_key
from introspect_ray.cases.tokenize import question_length
from introspect_ray.cases.wording import configured
from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Case
from introspect_ray.rng import bits
from introspect_ray.tasks.balance import balanced, values_by
from introspect_ray.tasks.registry import open_task
from introspect_ray.tasks.source import CaseSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseStream:
    """The cases of one side of a task, in the order of their rows. Each iteration reads the rows again.

    Memory holds 12 bytes per case (20 if a limit has to choose), however long its text is.
    """

    source: CaseSource
    numbers: NDArray[np.int32]  # [n], ascending row numbers
    keys: NDArray[np.uint64]  # [n], hash of each case's id
    choices: Mapping[str, NDArray[np.uint64]]  # [n], choice keys by side ("train", "test"), where it has a limit

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Case]:
        """Raises UserError as `placed`."""
        return (case for _, case in self.placed())

    def placed(self) -> Iterator[tuple[str, Case]]:
        """The cases, each with its place, "cases.jsonl line 7". Raises UserError if the rows are not those that were
        read first."""
        count = 0
        for (number, case), key in zip(self.source.cases(self.numbers), self.keys):
            if _id_key(case.case_id) != key:
                break
            count += 1
            yield f"{self.source.where} {number}", case
        if count < len(self):
            raise UserError("a case file changed while it was read: start again once it is complete")

    def select(self, kept: NDArray[np.bool_]) -> CaseStream:
        """The cases for which `kept` [n] holds."""
        choices = {side: keys[kept] for side, keys in self.choices.items()}
        return replace(self, numbers=self.numbers[kept], keys=self.keys[kept], choices=choices)


def load_cases(task: TaskConfig, tokenizer: Any = None) -> tuple[CaseStream, CaseStream]:
    """(training cases, held-out cases) of a task; a pure function of the files, `task` and, for task.max_tokens, M0's
    `tokenizer`.

    This call reads all rows once, to check them and to decide which cases each side has; iterating a side reads its
    rows again. `task.seed` decides the hints, the split, and which cases train_cases and test_cases keep, so the
    training seeds of a sweep share their cases. Cases with the same x∖C (the same question) are all on one side.
    The cases' wording is complete (cases/wording.py).
    Raises UserError if there is no such task, a row is wrong, a side is empty or a limit asks for more than there is;
    ValueError for task.max_tokens without a tokenizer.
    """
    if task.max_tokens is not None and tokenizer is None:
        raise ValueError("task.max_tokens counts tokens: give load_cases the tokenizer of M0")
    opened, held = open_task(task)
    train_source, test_source = _worded(opened, task), _worded(held, task) if held else None
    if test_source is None:
        cases, questions = _scan(task, train_source, tokenizer)
        tested = held_out(questions, task.test_fraction)
        train, test = cases.select(~tested), cases.select(tested)
    else:
        test, tested_questions = _scan(task, test_source, tokenizer)
        cases, questions = _scan(task, train_source, tokenizer)
        shared = np.isin(questions, tested_questions)
        train = cases.select(~shared)
        if dropped := int(shared.sum()):
            log.warning("dropped %d training cases whose prompt without the cue is also a held-out one", dropped)
        _refuse_shared_ids(train, test)
    if task.balance is not None and len(test):
        test = _balanced(test, task, task.balance)
    return _limit(train, task.train_cases, "train"), _limit(test, task.test_cases, "test")


def _worded(source: CaseSource, task: TaskConfig) -> CaseSource:
    """The source with the wording of the configuration applied to its cases, and checked."""

    def to_case(row: Any, where: str) -> Case:
        return configured(source.to_case(row, where), task, where)

    return replace(source, to_case=to_case)


def _scan(task: TaskConfig, source: CaseSource, tokenizer: Any) -> tuple[CaseStream, NDArray[np.uint64]]:
    """All cases of a source that are not too long, checked, each id once, and their question keys [n]."""
    numbers, keys, questions = array("i"), array("Q"), array("Q")
    limits = {"train": task.train_cases, "test": task.test_cases}
    choices = {side: array("Q") for side, limit in limits.items() if limit is not None}
    for number, case in _short_enough(source, task.max_tokens, tokenizer):
        numbers.append(number)
        keys.append(_id_key(case.case_id))
        questions.append(question_key(case, task.seed))
        for side, ranks in choices.items():
            ranks.append(choice_key(case.case_id, task.seed, side))
    by_side = {side: np.asarray(ranks, np.uint64) for side, ranks in choices.items()}
    stream = CaseStream(source, np.asarray(numbers, np.int32), np.asarray(keys, np.uint64), by_side)
    question_keys, repeats = np.asarray(questions, np.uint64), _repeats(stream.keys)
    if repeats.any() and source.drop_repeats:
        log.warning("dropped %d of %d cases, which repeat earlier ones", repeats.sum(), len(stream))
        return stream.select(~repeats), question_keys[~repeats]
    if repeats.any():
        _refuse_repeats(stream, repeats)
    return stream, question_keys


def _short_enough(source: CaseSource, limit: int | None, tokenizer: Any) -> Iterator[tuple[int, Case]]:
    """(row number, case) of the cases whose question q has at most `limit` tokens; the others are counted in one
    line. Raises UserError if none is left."""
    kept = dropped = 0
    shortest: int | None = None
    for number, case in source.cases():
        if limit is not None and (length := question_length(case, tokenizer)) > limit:
            dropped, shortest = dropped + 1, min(length, shortest or length)
            continue
        kept += 1
        yield number, case
    if dropped and not kept:
        raise UserError(
            f"task.max_tokens={limit} leaves none of the {dropped} cases of {source.where}: the shortest question q "
            f"has {shortest} tokens: raise it"
        )
    if dropped:
        log.warning(
            "task.max_tokens=%d: dropped %d of %d cases (%s), whose question q is longer",
            limit,
            dropped,
            dropped + kept,
            source.where,
        )


def _balanced(test: CaseStream, task: TaskConfig, balance: str) -> CaseStream:
    """The held-out cases that task.balance and task.test_cases leave. It reads them once more."""
    value_of = values_by(balance)
    values, order = [], array("Q")
    for case in test:
        values.append(value_of(case))
        order.append(choice_key(case.case_id, task.seed, "test"))
    kept, line = balanced(values, np.asarray(order, np.uint64), task.test_cases, balance)
    if line:
        log.warning("%s", line)
    return test.select(kept)


def _id_key(case_id: str) -> int:
    return bits(case_id)


def _repeats(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows [n] have the key of an earlier row.

    Sorting the keys, which the streams keep anyway, saves a set of ids: of a million ids it took 78 MB as hashes,
    140 MB as strings.
    """
    order = np.argsort(keys, kind="stable")
    repeats = np.zeros(len(keys), bool)
    repeats[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return repeats


def _refuse_repeats(cases: CaseStream, repeats: NDArray[np.bool_]) -> None:
    """Raise UserError if an id occurs twice. Different ids may share a key, so the ids are read again and compared."""
    suspects = cases.select(np.isin(cases.keys, cases.keys[repeats]))
    where, numbers = cases.source.where, dict[str, int]()
    for number, case in cases.source.cases(suspects.numbers):
        first = numbers.setdefault(case.case_id, number)
        if first != number:
            raise UserError(
                f"{where} {number}: id {case.case_id!r} is already that of {where} {first}; ids must be unique"
            )


def _refuse_shared_ids(train: CaseStream, test: CaseStream) -> None:
    """Labels and caches are kept by case id, so an id must mean one case over both files."""
    suspects = (side.select(np.isin(side.keys, other.keys)) for side, other in ((train, test), (test, train)))
    ours, theirs = ({case.case_id for case in side} for side in suspects)
    if shared := sorted(ours & theirs):
        raise UserError(
            f"{len(shared)} case ids stand in both the training and the held-out file, e.g. {shared[0]!r}: "
            "give every case an id of its own"
        )


def _limit(cases: CaseStream, limit: int | None, side: str) -> CaseStream:
    """A seeded choice of `limit` cases, in their old order; all of them for None."""
    if not len(cases):
        raise UserError(
            f"the task leaves no {side} cases; give more cases, or change task.test_fraction or task.test_path"
        )
    if limit is None:
        return cases
    if limit > len(cases):
        raise UserError(
            f"task.{side}_cases={limit}, but there are only {len(cases)} {side} cases: lower it or give more"
        )
    return cases.select(chosen(cases.choices[side], limit))
