"""Tasks: raw rows -> counterfactual cases, split into training and held-out ones (SPEC §6)."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from introspect_ray.cases.split import choice_key, chosen, held_out, question_key
from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Case
from introspect_ray.rng import bits
from introspect_ray.tasks import hint_mmlu, jsonl

log = logging.getLogger(__name__)

Reader = Callable[[Iterable[int] | None], Iterator[tuple[int, Case]]]

ORGANISM = Path(__file__).parents[1] / "organism"  # bundled: train.jsonl, test.jsonl


@dataclass(frozen=True)
class CaseStream:
    """Cases of one side of a task, in file order: read again from the file each time they are iterated.

    Memory holds 12 bytes a case (20 if a limit has to choose), however long its text is.
    """

    read: Reader
    numbers: np.ndarray  # int32 [n], ascending lines or rows of the file
    keys: np.ndarray  # uint64 [n], hash of each case's id
    choices: Mapping[str, np.ndarray]  # uint64 [n], choice keys by the side that has a limit

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Case]:
        """Raises UserError if the file is not the one that was read first."""
        count = 0
        for (_, case), key in zip(self.read(self.numbers), self.keys):
            if _id_key(case.case_id) != key:
                break
            count += 1
            yield case
        if count < len(self):
            raise UserError("a case file changed while it was read: start again once it is complete")

    def where(self, kept: np.ndarray) -> CaseStream:
        """The cases for which `kept` (bool [n]) holds."""
        choices = {side: keys[kept] for side, keys in self.choices.items()}
        return replace(self, numbers=self.numbers[kept], keys=self.keys[kept], choices=choices)


def load_cases(task: TaskConfig) -> tuple[CaseStream, CaseStream]:
    """(training cases, held-out cases) of a task; a pure function of the files and `task`.

    The files are read once here, which checks every line and decides which cases a side has, and once more by
    whoever iterates a side. `task.seed` decides the hints, the split, and which cases train_cases and test_cases keep,
    so the training seeds of a sweep share their cases. Cases with one and the same x∖C (the same question)
    never stand on both sides. Raises UserError if a side is empty or a limit asks for more than there is.
    """
    train_source, test_source = _sources(task)
    if test_source is None:
        cases, questions = _scan(task, train_source)
        tested = held_out(questions, task.test_fraction)
        train, test = cases.where(~tested), cases.where(tested)
    else:
        test, tested = _scan(task, test_source)
        cases, questions = _scan(task, train_source)
        shared = np.isin(questions, tested)
        train = cases.where(~shared)
        if dropped := int(shared.sum()):
            log.warning("dropped %d training cases whose prompt without the cue is also a held-out one", dropped)
        _refuse_shared_ids(train, test)
    return _limit(train, task.train_cases, "train"), _limit(test, task.test_cases, "test")


def _scan(task: TaskConfig, source: str | None) -> tuple[CaseStream, np.ndarray]:
    """All cases of a file, checked, and their question keys (uint64 [n])."""
    read = _reader(task, source)
    numbers, keys, questions = array("i"), array("Q"), array("Q")
    limits = {"train": task.train_cases, "test": task.test_cases}
    choices = {side: array("Q") for side, limit in limits.items() if limit is not None}
    for number, case in read(None):
        numbers.append(number)
        keys.append(_id_key(case.case_id))
        questions.append(question_key(case, task.seed))
        for side, ranks in choices.items():
            ranks.append(choice_key(case.case_id, task.seed, side))
    by_side = {side: np.asarray(ranks) for side, ranks in choices.items()}
    stream = CaseStream(read, np.asarray(numbers), np.asarray(keys), by_side)
    return stream, np.asarray(questions)


def _id_key(case_id: str) -> int:
    return bits(case_id)


def _sources(task: TaskConfig) -> tuple[str | None, str | None]:
    """Training and held-out file; None for the hub (training) or for a split of the training file (held-out)."""
    if task.name == "organism":
        return str(ORGANISM / "train.jsonl"), str(ORGANISM / "test.jsonl")
    return task.path, task.test_path


def _reader(task: TaskConfig, source: str | None) -> Reader:
    """How to read a file's (number, case), or only those of given numbers."""
    if task.name != "hint_mmlu":
        path = _check_file(Path(str(source)))
        return lambda only: jsonl.read_cases(path, only)
    file = _check_file(Path(source)) if source else None

    def read(only: Iterable[int] | None) -> Iterator[tuple[int, Case]]:
        rows = hint_mmlu.read_rows(file, only) if file else hint_mmlu.read_hub(task.hub_id, only)
        return hint_mmlu.cases_from_rows(rows, wording=task.wording, seed=task.seed)

    return read


def _check_file(path: Path) -> Path:
    """`path` if it can be read as a file; `task.path` and `task.test_path` are where it comes from."""
    if not path.exists():
        raise UserError(f"{path}: no such file; set task.path (or task.test_path) to an existing one")
    if not path.is_file():
        raise UserError(f"{path} is a folder; set task.path (or task.test_path) to a file in it")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    if empty:
        raise UserError(f"{path} is empty; it must hold at least one row")
    return path


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
    return cases.where(chosen(cases.choices[side], limit))


def _refuse_shared_ids(train: CaseStream, test: CaseStream) -> None:
    """Labels and caches are kept by case id, so an id must mean one case over both files."""
    suspects = (side.where(np.isin(side.keys, other.keys)) for side, other in ((train, test), (test, train)))
    ours, theirs = ({case.case_id for case in side} for side in suspects)
    if shared := sorted(ours & theirs):
        raise UserError(
            f"{len(shared)} case ids stand in both the training and the held-out file, e.g. {shared[0]!r}: "
            "give every case an id of its own"
        )
