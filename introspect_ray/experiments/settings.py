"""What the experiments are run with: settings.yaml, or the user's file over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from introspect_ray.config import flatten, read_yaml
from introspect_ray.config.load import merge
from introspect_ray.errors import UserError
from introspect_ray.experiments.protocol import File, Organism

DEFAULT = Path(__file__).with_name("settings.yaml")
FAMILIES = ("qwen3", "llama", "qwen3-wide")  # organism.pretraining has them; importing it imports torch
_FILE = "file:"  # before the name of a file of the organism


@dataclass(frozen=True)
class Settings:
    """settings.yaml; its comments say what each key is for."""

    run: Mapping[str, Any]  # overrides of every run, by dotted key
    kinds: Mapping[str, Mapping[str, Any]]  # overrides of the runs on a kind of organism
    parts: Mapping[str, Mapping[str, Any]]  # overrides by name: auxiliary data, other cases
    worlds: Mapping[str, Any]  # headline: [...], single: number, or null for the bundled organism
    seeds: Mapping[str, tuple[int, ...]]  # headline, figures, sweeps, grid
    values: Mapping[str, tuple[Any, ...]]  # swept values by name
    families: tuple[str, ...]
    headline_kinds: tuple[str, ...]
    check_worlds: bool  # whether a claim is judged on the worlds and seeds alone that it names

    def is_real(self, kind: str) -> bool:
        """Whether the runs of this kind are on a given policy, so that no organism has to be built."""
        return "policy" in self.kinds.get(kind, {})

    def headline(self, kind: str) -> list[Organism]:
        """The organisms of the headline claims: one per world; one in all where the policy is given."""
        worlds = [0] if self.is_real(kind) else self.worlds["headline"]
        return [Organism(kind, world) for world in worlds]

    def single(self, kind: str = "hint", family: str = "qwen3") -> Organism | None:
        """The organism of figures on one world; None: the bundled one (kind hint alone)."""
        world = self.worlds["single"]
        if world is None and kind == "hint" and family == "qwen3" and not self.is_real(kind):
            return None
        return Organism(kind, world or 0, 0, family)

    def part(self, name: str) -> dict[str, Any]:
        """The overrides of a part, with `File` for "file:NAME". Raises UserError for one that there is not."""
        if name not in self.parts:
            raise UserError(f"settings: no part {name!r}; there are {', '.join(self.parts)}")
        return {key: _value(value) for key, value in self.parts[name].items()}


def _value(value: Any) -> Any:
    return File(value.removeprefix(_FILE)) if isinstance(value, str) and value.startswith(_FILE) else value


_Numbers = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1)]
_Names = Annotated[list[StrictStr], Field(min_length=1)]
_Overrides = dict[str, dict[str, Any] | None]


class _Worlds(BaseModel):
    model_config = ConfigDict(extra="forbid")
    headline: _Numbers = [0]
    single: Annotated[StrictInt, Field(ge=0)] | None = None


class _File(BaseModel):
    """The form of a settings file; the names in it are those of settings.yaml."""

    model_config = ConfigDict(extra="forbid")
    run: dict[str, Any] = {}
    worlds: _Worlds = _Worlds()
    seeds: dict[str, _Numbers] = {}
    headline_kinds: _Names = [""]
    families: _Names = [""]
    check_worlds: StrictBool = True
    values: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    kinds: _Overrides = {}
    parts: _Overrides = {}


def _check(own: Mapping[str, Any], default: Mapping[str, Any], what: str) -> None:
    """Raises UserError for the first thing in a user's settings that has no effect or another form than the default."""
    if unknown := sorted(own.keys() - default.keys(), key=str):
        raise UserError(f"{what}: unknown section {unknown[0]!r}; there are {', '.join(default)}")
    try:
        _File.model_validate(own)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{what}: {key}: {first['msg']}, got {first['input']!r}; settings.yaml has an example"
        ) from None
    for section in ("seeds", "values", "kinds", "parts"):
        if unknown := [name for name in own.get(section, {}) if name not in default[section]]:
            raise UserError(f"{what}: unknown {section}.{unknown[0]}; there are {', '.join(default[section])}")
    known = {"headline_kinds": tuple(default["kinds"]), "families": FAMILIES}
    for section, names in known.items():
        if unknown := [name for name in own.get(section, []) if name not in names]:
            raise UserError(f"{what}: unknown {section} {unknown[0]!r}; there are {', '.join(names)}")
    lists = {
        "worlds.headline": own.get("worlds", {}).get("headline", []),
        **_lists(own, "seeds"),
        **_lists(own, "values"),
    }
    lists |= {name: own.get(name, []) for name in known}
    for name, values in lists.items():
        if twice := [value for at, value in enumerate(values) if value in values[:at]]:
            raise UserError(f"{what}: {name} has {twice[0]!r} twice, and a run counts once: name it once")


def _lists(own: Mapping[str, Any], section: str) -> dict[str, list[Any]]:
    return {f"{section}.{name}": values for name, values in own.get(section, {}).items()}


def load_settings(file: str | None = None) -> Settings:
    """settings.yaml with the sections and keys of `file` on top. A kind or part of `file` replaces the whole one.

    Raises UserError for a file that cannot be read, an unknown section or key, and a value of another type.
    """
    given = read_yaml(DEFAULT, "settings")
    if file is not None:
        own = read_yaml(Path(file), "settings file")
        _check(own, given, f"settings file {file}")
        replaced = {name: {**given[name], **own.get(name, {})} for name in ("kinds", "parts")}
        given = {**merge(given, own), **replaced}
    return Settings(
        run=flatten(given["run"]),
        kinds={kind: flatten(section or {}) for kind, section in given["kinds"].items()},
        parts={name: flatten(section or {}) for name, section in given["parts"].items()},
        worlds=given["worlds"],
        seeds={name: tuple(seeds) for name, seeds in given["seeds"].items()},
        values={name: tuple(values) for name, values in given["values"].items()},
        families=tuple(given["families"]),
        headline_kinds=tuple(given["headline_kinds"]),
        check_worlds=bool(given["check_worlds"]),
    )
