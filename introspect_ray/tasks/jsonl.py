"""Cases from a JSONL file (or .jsonl.gz), one per line.

A line: {"id": "q1", "messages": [{"role": "user", "content": "2+2?\\nHint: A"}], "ablated_messages":
[{"role": "user", "content": "2+2?"}], "labels": ["A", "B"], "meta_question": "If the hint ...?"}.

Optional keys:
- `meta_question`: by default whether the answer would change if the cue were removed, or replaced
- `response` {"kind": "labels" | "free", "judge": "keyword" | "llm", "max_tokens"}: free means that the run's judge puts
  a text of at most max_tokens into one of the labels
- `templates` {"changed", "unchanged", "labels": {label: display text}}: the wording of explanations
- `group`: the kind of cue; `metadata`: an object of any keys, which rides along into the evaluation
Other keys are refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from introspect_ray.cases.cue import default_meta_question
from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Case, Message, Response, Templates
from introspect_ray.tasks.files import existing_file, read_json, refuse_half_characters, text_lines
from introspect_ray.tasks.source import CaseSource


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: Text


class _Response(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["labels", "free"]
    judge: Literal["keyword", "llm"] | None = None
    max_tokens: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> _Response:
        if self.kind == "labels" and (self.judge or self.max_tokens):
            raise ValueError("judge and max_tokens are for kind free")
        if self.kind == "free" and self.max_tokens < 1:
            raise ValueError("kind free needs max_tokens of at least 1")
        return self


class _Templates(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    changed: Text | None = None
    unchanged: Text | None = None
    labels: dict[str, Text] = {}


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    id: Text
    messages: list[_Turn]
    ablated_messages: list[_Turn]
    labels: list[Text]
    meta_question: Text | None = None
    response: _Response | None = None
    group: str = ""
    metadata: dict[str, Any] = {}
    templates: _Templates | None = None


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
    remedy = "write one object per line"
    data = read_json(line, where, remedy, parse_constant=_refuse_constant, parse_float=_finite)
    refuse_half_characters(line, data, where)
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
    if messages == ablated:
        raise UserError(f"{where}: ablated_messages equals messages; remove or replace the cue in it")
    return Case(
        case_id=row.id,
        messages=messages,
        ablated_messages=ablated,
        meta_question=row.meta_question or default_meta_question(messages, ablated),
        labels=tuple(row.labels),
        response=Response(row.response.kind, row.response.judge, row.response.max_tokens)
        if row.response
        else Response(),
        templates=_wording(row, where),
        group=row.group,
        metadata=row.metadata,
    )


def _wording(row: _Row, where: str) -> Templates:
    given = row.templates
    if given is None:
        return Templates()
    foreign = next((label for label in given.labels if label not in row.labels), None)
    if foreign is not None:
        raise UserError(
            f"{where}: templates.labels names {foreign!r}, which is none of the labels {row.labels}; correct it"
        )
    return Templates(given.changed or "", given.unchanged or "", tuple(given.labels.items()))


def _refuse_constant(name: str) -> float:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise json.JSONDecodeError(f"{name} is no JSON value", name, 0)


def _finite(text: str) -> float:
    """A number that is one: 1e999 reads as infinity, which no JSON could say again."""
    if math.isinf(value := float(text)):
        raise json.JSONDecodeError(f"{text:.20} is beyond all numbers", text, 0)
    return value


def _turns(turns: list[_Turn]) -> tuple[Message, ...]:
    return tuple({"role": turn.role, "content": turn.content} for turn in turns)


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known: dict[str, type[BaseModel]] = {
            "messages": _Turn,
            "ablated_messages": _Turn,
            "response": _Response,
            "templates": _Templates,
        }
        model: type[BaseModel] = known[str(first["loc"][0])] if len(first["loc"]) > 1 else _Row
        return f"unknown key {key!r}; the keys are {', '.join(model.model_fields)}"
    if first["type"] == "missing":
        return f"key {key!r} is missing; add it"
    if first["type"] == "model_type":
        return f"key {key!r}: expected an object, got {first['input']!r:.200}; correct it"
    return f"key {key!r}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r:.200}; correct it"


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
