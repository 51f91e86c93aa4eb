"""Cases from a JSONL file (or .jsonl.gz), one per line.

A line: {"id": "q1", "messages": [{"role": "user", "content": "2+2?\\nHint: A"}], "ablated_messages":
[{"role": "user", "content": "2+2?"}], "labels": ["A", "B"], "meta_question": "If the hint ...?"}.
`meta_question` is optional, the other keys are required, and unknown keys are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from introspect_ray.cases.prefix import common_prefix
from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Case, Message
from introspect_ray.tasks.files import existing_file, text_lines
from introspect_ray.tasks.source import CaseSource

META_QUESTION = "If the cue were removed, how would the assistant's answer change?"  # paper §2.1


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: Text


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    id: Text
    messages: list[_Turn]
    ablated_messages: list[_Turn]
    labels: list[Text]
    meta_question: Text = META_QUESTION


def open_jsonl(task: TaskConfig) -> tuple[CaseSource, CaseSource | None]:
    """The files task.path and, if it is set, task.test_path. Raises UserError."""
    if not task.path:
        raise UserError("task.name=jsonl needs task.path, a JSONL file of cases: set it")
    train = case_file(existing_file(task.path, "task.path"))
    return train, case_file(existing_file(task.test_path, "task.test_path")) if task.test_path else None


def case_file(path: Path) -> CaseSource:
    """A file with one case per line."""
    return CaseSource(f"{path} line", lambda: text_lines(path), case_from_line)


def case_from_line(line: str, where: str) -> Case:
    """The case on a line. Raises UserError "WHERE: what is wrong; the remedy"."""
    if not line.strip():
        raise UserError(f"{where}: blank line; delete it")
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); write one object per line"
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(data).__name__}; write one case per line")
    try:
        row = _Row.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from None
    messages, ablated = _turns(row.messages), _turns(row.ablated_messages)
    _check_labels(row.labels, where)
    _check_turns(messages, "messages", where)
    _check_turns(ablated, "ablated_messages", where)
    _check_span(messages, ablated, where)
    return Case(row.id, messages, ablated, row.meta_question, tuple(row.labels))


def _turns(turns: list[_Turn]) -> tuple[Message, ...]:
    return tuple({"role": turn.role, "content": turn.content} for turn in turns)


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; the keys are {', '.join(_Row.model_fields)}"
    if first["type"] == "missing":
        return f"key {key!r} is missing; add it"
    return f"key {key!r}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}; correct it"


def _check_labels(labels: list[str], where: str) -> None:
    if len(labels) < 2:
        raise UserError(f"{where}: {len(labels)} labels; a behaviour needs at least two to choose from")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f"{where}: label {twice[0]!r} stands twice in labels; list each once")


def _check_turns(turns: tuple[Message, ...], key: str, where: str) -> None:
    roles = [turn["role"] for turn in turns]
    if not roles or roles[-1] != "user":
        raise UserError(
            f"{where}: {key} must end with a user turn, the roles are {roles}; the policy answers that turn"
        )
    if "system" in roles[1:]:
        raise UserError(f"{where}: {key} has a system turn that is not the first; a chat has one at most, at its start")


def _check_span(messages: tuple[Message, ...], ablated: tuple[Message, ...], where: str) -> None:
    """Raise UserError unless x∖C is x with one contiguous span removed (paper §2.1), which may be a whole turn."""
    full, short = _flat(messages), _flat(ablated)
    if full == short:
        raise UserError(f"{where}: ablated_messages equals messages; remove the cue from it")
    prefix = common_prefix(full, short)
    suffix = common_prefix(full[::-1], short[::-1])
    if len(short) >= len(full) or prefix + suffix < len(short):
        raise UserError(
            f"{where}: ablated_messages is not messages with one contiguous span removed (they share {prefix} "
            f"characters at the start and {suffix} at the end); only delete the cue, change nothing else"
        )


def _flat(turns: tuple[Message, ...]) -> str:
    """The chat as one string. Control characters mark the borders of turns, so that a whole turn is a span too."""
    return "".join(f"{turn['role']}\x1f{turn['content']}\x1e" for turn in turns)
