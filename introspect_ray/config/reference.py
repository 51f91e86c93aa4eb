"""The keys of the configuration as text: `--help SECTION`, and docs/config.md by `make docs`.

python -m introspect_ray.config.reference > docs/config.md
"""

from __future__ import annotations

import difflib
import json
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from introspect_ray.config.load import PRESETS
from introspect_ray.config.sections import RunConfig
from introspect_ray.errors import UserError

TOP = "run"  # what --help calls the keys that are in no section
_NAMES = {int: "integer", float: "number", bool: "true | false", str: "text", dict: "mapping", type(None): "null"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


class Key(NamedTuple):
    """One config key: its dotted name, and its type, default and meaning as text."""

    name: str
    type: str
    default: str
    meaning: str


class Section(NamedTuple):
    """A section of the configuration; `name` is TOP for the keys that are in none."""

    name: str
    meaning: str
    keys: tuple[Key, ...]


def sections() -> list[Section]:
    """All sections, the keys without one first."""
    nested = {name: model for name, info in RunConfig.model_fields.items() if (model := _model(info))}
    return [_section(TOP, RunConfig), *(_section(name, model) for name, model in nested.items())]


def help_text(topic: str) -> str:
    """The keys of the section `topic`, or the one key of that name. Raises UserError if there is neither."""
    known = sections()
    for section in known:
        if topic == section.name:
            return "\n".join([section.meaning, "", *map(_key_text, section.keys)])
    keys = {key.name: key for section in known for key in section.keys}
    if topic in keys:
        return _key_text(keys[topic])
    names = [section.name for section in known]
    close = difflib.get_close_matches(topic, [*names, *keys], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the sections are {', '.join(names)}"
    raise UserError(f"--help {topic}: no such section or key; {hint}")


def markdown() -> str:
    """docs/config.md."""
    return "\n".join(["# Configuration", "", *_INTRODUCTION, *(line for part in sections() for line in _table(part))])


_INTRODUCTION = (
    "Made by `make docs` from `introspect_ray/config/sections.py`; do not edit.",
    "",
    "Keys are given as `key=value` on the command line or in a YAML file (`--config FILE`); `--help SECTION` prints a",
    "section of this page. Later ones win: the defaults below, the task's preset "
    f"({', '.join(f'`{path.name}`' for path in sorted(PRESETS.glob('*.yaml')))} in",
    "`introspect_ray/config/presets/`), the job's defaults, the file, the command line.",
    "",
    "On the command line the value of a key of type text stands for itself; other values are YAML, so that lists and",
    "mappings need quoting for the shell: `'task.label_names={YTA: \"you are in the wrong\"}'`.",
    "",
)


def _section(name: str, model: type[BaseModel]) -> Section:
    prefix = "" if name == TOP else f"{name}."
    meaning = " ".join((model.__doc__ or "").split())
    return Section(name, meaning, tuple(_keys(model, prefix)))


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, info in model.model_fields.items():
        if not _model(info):
            default = json.dumps(info.default, ensure_ascii=False) if info.default != () else "[]"
            meaning = " ".join((info.description or "").split())
            yield Key(prefix + name, _type_text(info), default.strip('"') or '""', meaning)


def _model(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _type_text(info: FieldInfo) -> str:
    """Example: "integer ≥ 1 | null"."""
    bounds = [
        f"{sign} {value:g}"
        for constraint in info.metadata
        for name, sign in _BOUNDS.items()
        if (value := getattr(constraint, name, None)) is not None
    ]
    names = _type_names(info.annotation)
    names[0] = " ".join([names[0], ", ".join(bounds)]).strip()
    return " | ".join(names)


def _type_names(kind: Any) -> list[str]:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [str(value) for value in args]
    if origin in (Union, types.UnionType):
        return [name for arg in args for name in _type_names(arg)]
    if origin is tuple:
        return [f"list of {_NAMES[args[0]]}s"]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [f"keys of {kind.__name__}"]
    return [_NAMES[origin or kind]]


def _key_text(key: Key) -> str:
    body = textwrap.fill(key.meaning, 100, initial_indent="    ", subsequent_indent="    ")
    return f"{key.name}={key.default}  ({key.type})\n{body}"


def _table(section: Section) -> list[str]:
    rows = [[f"`{key.name}`", key.type, f"`{key.default}`", key.meaning] for key in section.keys]
    return [
        *([] if section.name == TOP else [f"## {section.name}", "", section.meaning, ""]),
        "| key | type | default | meaning |",
        "|---|---|---|---|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
        "",
    ]


if __name__ == "__main__":
    print(markdown(), end="")
