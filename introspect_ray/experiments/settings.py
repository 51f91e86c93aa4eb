"""What the experiments are run with: settings.yaml, or the user's file over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.config import flatten, read_yaml
from introspect_ray.config.load import merge
from introspect_ray.errors import UserError
from introspect_ray.experiments.protocol import File, Organism

DEFAULT = Path(__file__).with_name("settings.yaml")
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


def load_settings(file: str | None = None) -> Settings:
    """settings.yaml with the sections and keys of `file` on top. A kind or part of `file` replaces the whole one.

    Raises UserError for a file that cannot be read, or an unknown section.
    """
    given = read_yaml(DEFAULT, "settings")
    if file is not None:
        own = read_yaml(Path(file), "settings file")
        unknown = sorted(own.keys() - given.keys())
        if unknown:
            raise UserError(f"settings file {file}: unknown section {unknown[0]!r}; there are {', '.join(given)}")
        replaced = {name: {**given[name], **(own.get(name) or {})} for name in ("kinds", "parts")}
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
