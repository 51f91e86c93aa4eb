"""Tasks: raw rows -> counterfactual cases, split into training and held-out ones (SPEC §6)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Case
from introspect_ray.tasks import hint_mcq, jsonl
from introspect_ray.tasks.split import choose, split, without

log = logging.getLogger(__name__)

ORGANISM = Path(__file__).parent.parent / "organism"  # bundled: train.jsonl, test.jsonl


def load_cases(task: TaskConfig) -> tuple[list[Case], list[Case]]:
    """(training cases, held-out cases) of a task; a pure function of the files and `task`.

    `task.seed` decides the hints, the split, and which cases train_cases and test_cases keep, so the training
    seeds of a sweep share their cases. Cases with one and the same x∖C (the same question)
    never stand on both sides. Raises UserError if a side is empty or a limit asks for more than there is.
    """
    read = _reader(task)
    train_source, test_source = _sources(task)
    if test_source is None:
        train, test = split(read(train_source), task.test_fraction, task.seed)
    else:
        test = read(test_source)
        train, dropped = without(read(train_source), test)
        if dropped:
            log.warning("dropped %d training cases whose prompt without the cue is also a held-out one", dropped)
        _refuse_shared_ids(train, test)
    train = _limit(train, task.train_cases, task.seed, "train")
    return train, _limit(test, task.test_cases, task.seed, "test")


def _sources(task: TaskConfig) -> tuple[str | None, str | None]:
    """Training and held-out file; None for the hub (training) or for a split of the training file (held-out)."""
    if task.name == "organism":
        return str(ORGANISM / "train.jsonl"), str(ORGANISM / "test.jsonl")
    return task.path, task.test_path


def _reader(task: TaskConfig) -> Callable[[str | None], list[Case]]:
    if task.name != "hint_mmlu":
        return lambda source: jsonl.read_cases(_check_file(Path(str(source))))
    return lambda source: hint_mcq.cases_from_rows(
        hint_mcq.read_rows(_check_file(Path(source))) if source else hint_mcq.read_hub(task.hub_id),
        wording=task.wording,
        seed=task.seed,
    )


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


def _limit(cases: list[Case], limit: int | None, seed: int, side: str) -> list[Case]:
    """A seeded choice of `limit` cases, in their old order; all of them for None."""
    if not cases:
        raise UserError(
            f"the task leaves no {side} cases; give more cases, or change task.test_fraction or task.test_path"
        )
    if limit is None:
        return cases
    if limit > len(cases):
        raise UserError(
            f"task.{side}_cases={limit}, but there are only {len(cases)} {side} cases: lower it or give more"
        )
    return choose(cases, limit, seed, side)


def _refuse_shared_ids(train: list[Case], test: list[Case]) -> None:
    """Labels and caches are kept by case id, so an id must mean one case over both files."""
    shared = sorted({c.case_id for c in train} & {c.case_id for c in test})
    if shared:
        raise UserError(
            f"{len(shared)} case ids stand in both the training and the held-out file, e.g. {shared[0]!r}: "
            "give every case an id of its own"
        )
