"""A sweep over one config key: its values, its trials, its score. The sweep itself is in distributed/sweep.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.config import RunConfig, load_config, override, read_yaml
from introspect_ray.config.load import flatten
from introspect_ray.errors import UserError


def gap(summary: dict[str, Any]) -> float:
    """Self - Orig Explanation EM: the size of introspective coupling (paper §2.3)."""
    return summary["explanation"]["self"]["em"] - summary["explanation"]["orig"]["em"]


@dataclass(frozen=True)
class Space:
    """A one-key sweep: the dotted config key, its default values, what it fixes besides, and the trial's score."""

    key: str
    values: tuple[Any, ...]
    fixed: dict[str, Any]
    objective: Callable[[dict[str, Any]], float] = gap

    @property
    def leaf(self) -> str:
        return self.key.rsplit(".", 1)[-1]


def load_sweep(
    space: Space, file: str | None, overrides: dict[str, Any], defaults: dict[str, Any]
) -> tuple[list[Any], list[int], RunConfig]:
    """(values of the swept key, seeds, the config of everything else). `defaults`: the job's, as in load_config.

    Without seed and seeds on the command line the config's seed is the only one. Raises UserError.
    """
    values, seeds, rest = split_overrides(space, overrides)
    in_file = flatten(read_yaml(Path(file))) if file else {}
    if space.key in in_file:
        raise UserError(f"{file} sets {space.key}, which is swept: give {space.key}=[...] on the command line")
    _check_fixed(space, in_file)
    cfg = load_config(file, rest, defaults)
    return values, seeds if {"seed", "seeds"} & overrides.keys() else [cfg.seed], cfg


def _check_fixed(space: Space, given: dict[str, Any]) -> None:
    clash = {key: given[key] for key, value in space.fixed.items() if given.get(key, value) != value}
    if clash:
        raise UserError(f"{clash} does not go with a sweep over {space.key}, which needs {space.fixed}: leave it out")


def split_overrides(space: Space, overrides: dict[str, Any]) -> tuple[list[Any], list[int], dict[str, Any]]:
    """(values of the swept key, seeds, the other overrides). Raises UserError for empty or repeated values."""
    _check_fixed(space, overrides)
    rest = {**overrides, **space.fixed}
    values, seeds = rest.pop(space.key, list(space.values)), rest.pop("seeds", [rest.pop("seed", 0)])
    values, seeds = (v if isinstance(v, list) else [v] for v in (values, seeds))
    for name, given in ((space.key, values), ("seeds", seeds)):
        if not given or len({_shown(one) for one in given}) < len(given):
            raise UserError(f"{name}={given}: a sweep needs at least one value and each only once, e.g. {name}=[0,1]")
    return values, seeds, rest


def _shown(value: Any) -> str:
    """A value as it stands in a folder's name: 1 and 1.0 are one trial."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def trial_name(space: Space, value: Any, seed: int) -> str:
    """Example: "kl_weight=0.1,seed=0"."""
    return f"{space.leaf}={_shown(value)},seed={seed}"


def trial_config(cfg: RunConfig, space: Space, value: Any, seed: int) -> RunConfig:
    """The run of one trial: the base config with the swept key, the seed and a folder of its own."""
    root = cfg.output_dir.rstrip("/")
    folder = f"{root}/trials/{trial_name(space, value, seed)}"
    return override(
        cfg, {space.key: value, "seed": seed, "output_dir": folder, "cache_dir": cfg.cache_dir or f"{root}/cache"}
    )
