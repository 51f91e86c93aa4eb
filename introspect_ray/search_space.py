"""A sweep over one config key: its values, its trials, its score. The sweep itself is in distributed/sweep.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from introspect_ray.config import RunConfig, override
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


def split_overrides(space: Space, overrides: dict[str, Any]) -> tuple[list[Any], list[int], dict[str, Any]]:
    """(values of the swept key, seeds, the other overrides). Raises UserError for empty or repeated values."""
    clash = {key: overrides[key] for key, value in space.fixed.items() if overrides.get(key, value) != value}
    if clash:
        raise UserError(f"{clash} does not go with a sweep over {space.key}, which needs {space.fixed}: leave it out")
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


def trial_config(cfg: RunConfig, space: Space, value: Any, seed: int) -> RunConfig:
    """The run of one trial: the base config with the swept key, the seed and a folder of its own."""
    root = cfg.output_dir.rstrip("/")
    folder = f"{root}/trials/{space.leaf}={_shown(value)},seed={seed}"
    return override(
        cfg, {space.key: value, "seed": seed, "output_dir": folder, "cache_dir": cfg.cache_dir or f"{root}/cache"}
    )
