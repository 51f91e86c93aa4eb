"""What the loaders of public sets share: where their rows come from, and rows that are each other's counterfactual."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Case, Message
from introspect_ray.tasks.choices import content_id, text_of
from introspect_ray.tasks.rows import HUB_FILES, Drops, counted_source, open_rows, row_files
from introspect_ray.tasks.source import CaseSource


@dataclass(frozen=True)
class PublicSet:
    """A public set: its task name, how its files become cases, and where it stands on the hub, if it does."""

    name: str
    cases: Callable[[list[Path], TaskConfig, Drops], Iterator[Case]]
    hub_id: str | None = None
    hub_files: tuple[str, ...] = HUB_FILES


def open_set(task: TaskConfig, public: PublicSet) -> tuple[CaseSource, CaseSource | None]:
    """The rows of task.path (a file, or all files of a folder), else of task.hub_id, else of the set's own hub id; the
    held-out ones of task.test_path, likewise."""
    if task.path:
        return sources(task, public, row_files(task.path, "task.path"))
    return sources(task, public, open_rows(None, task.hub_id or public.hub_id, "task.path", public.hub_files))


def sources(task: TaskConfig, public: PublicSet, files: list[Path]) -> tuple[CaseSource, CaseSource | None]:
    """The training cases of `files`; the held-out ones of task.test_path."""
    test = row_files(task.test_path, "task.test_path") if task.test_path else None
    return _source(task, public, files), _source(task, public, test) if test else None


def _source(task: TaskConfig, public: PublicSet, files: list[Path]) -> CaseSource:
    name = f"{public.name} ({files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''})"
    return counted_source(name, lambda drops: public.cases(files, task, drops))


@dataclass(frozen=True)
class Half:
    """One prompt of a set whose rows are each other's counterfactual."""

    where: str
    question: Hashable  # equal for the prompts of one question
    cue: str | None  # the kind of cue; None: the prompt without one
    messages: tuple[Message, ...]
    labels: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def case_of(name: str, cued: Half, plain: Half, meta_question: str, labels: tuple[str, ...]) -> Case:
    """The case of two prompts; its id begins with `name`, its group is the kind of cue, its metadata that of x."""
    case_id = content_id(name, text_of(cued.messages), text_of(plain.messages))
    group = str(cued.cue)
    return Case(case_id, cued.messages, plain.messages, meta_question, labels, group=group, metadata=cued.metadata)


def paired(
    halves: Callable[[], Iterable[Half]], make: Callable[[Half, Half], Case | None], drops: Drops
) -> Iterator[Case]:
    """A case from each prompt with a cue and the one without it that has the same question.

    halves: reads from the start at every call; it is read twice, and the prompts without a cue are kept in memory.
    make: (with, without) -> case, or None to leave the pair out after telling `drops`. Raises UserError if two
    different prompts without a cue have one question.
    """
    plain: dict[Hashable, Half] = {}
    for half in halves():
        if half.cue is None and plain.setdefault(half.question, half).messages != half.messages:
            raise UserError(
                f"{half.where}: another prompt without the cue than {plain[half.question].where}, for the same "
                "question: keep one of them"
            )
    for half in halves():
        if half.cue is None:
            continue
        other = plain.get(half.question)
        if other is None:
            drops.add(half.where, "no row without the cue has the same question")
        elif other.messages == half.messages:
            drops.add(half.where, "the row without the cue has the same prompt")
        elif case := make(half, other):
            yield case
