"""A sweep over one config key: its values, its trials, its score. sweep.py runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.config import RunConfig, flatten, load_config, override, read_yaml
from introspect_ray.errors import UserError


def gap(summary: dict[str, Any]) -> float:
    """Self - Orig Explanation EM, the size of introspective coupling (paper §2.3), on the dev split: what is chosen by
    it can be reported on the test split. Without a dev split (eval.dev_fraction=0) it is that of the test split."""
    found: float = (summary["dev"] or summary)["gap"]["em"]["value"]
    return found


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


# The paper's sweeps by the names of jobs/sweep_*.py. The learning rates are for 8B policies; small ones take larger.
PAPER_SWEEPS = {
    "lambda": Space("kl_weight", (0.0, 1e-4, 1e-3, 5e-3, 1e-2, 1e-1, 1.0, 10.0), fixed={}),  # figure 4, §4.1
    "agreement": Space(  # figure 5, §4.2
        "supervision.agreement", (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), fixed={"supervision.rule": "online"}
    ),
    "alpha": Space(  # figure 6, §4.3
        "supervision.mixing_ratio", (0.0, 0.25, 0.5, 0.75, 1.0), fixed={"supervision.rule": "mixed"}
    ),
    "lora_rank": Space("lora_rank", (32, 64, 80, 96, 128, 256), fixed={"method": "lora"}),  # figure 17, §D.1
    "lr": Space("learning_rate", (5e-6, 1e-5, 2e-5, 3e-5, 5e-5, 1e-4), fixed={}),  # figure 18, §D.2
}
# Keys that may differ between trials: engines, cases, M0's labels and its reference are made once for all of them.
SWEEPABLE = (
    *(space.key for space in PAPER_SWEEPS.values()),
    "batch_size",
    "lag",
    "train.weight_decay",
    "train.max_grad_norm",
)
# lists that are not the swept key's
_OTHER_LISTS = ("seed", "seeds", "eval.against", "judge.labels", "judge.second.labels")


def space_of(key: str) -> Space:
    """The sweep over a config key: the paper's, with its values and what it fixes, or one without default values.

    Raises UserError for a key that trials on the same engines and cases cannot differ in.
    """
    if key not in SWEEPABLE:
        raise UserError(
            f"{key} cannot be swept: all trials share engines, cases and M0's labels; sweep one of "
            f"{', '.join(SWEEPABLE)}, or run `train` for each value"
        )
    return next((space for space in PAPER_SWEEPS.values() if space.key == key), Space(key, (), fixed={}))


def chosen_space(names: Sequence[str], overrides: Mapping[str, Any]) -> Space:
    """The sweep that a command line asks for: a paper's sweep by name, or the one key that takes a list.

    Raises UserError if it asks for none, for several, or for one that there is not.
    """
    if names:
        if len(names) == 1 and names[0] in PAPER_SWEEPS:
            return PAPER_SWEEPS[names[0]]
        raise UserError(f"sweep {' '.join(names)}: give one name of {', '.join(PAPER_SWEEPS)}, or key=[value, ...]")
    lists = [key for key, value in overrides.items() if isinstance(value, list) and key not in _OTHER_LISTS]
    if len(lists) != 1:
        found = f"{', '.join(lists)} take lists" if lists else "no key takes a list"
        raise UserError(
            f"sweep: {found}; give one key a list, e.g. kl_weight=[0,1], or name a paper's sweep: "
            f"{', '.join(PAPER_SWEEPS)}"
        )
    return space_of(lists[0])


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
    check_values(space, values, seeds)
    return values, seeds, rest


def check_values(space: Space, values: Sequence[Any], seeds: Sequence[int]) -> None:
    """Raises UserError for empty or repeated values or seeds."""
    for name, given in ((space.key, values), ("seeds", seeds)):
        if not given or len({_shown(one) for one in given}) < len(given):
            raise UserError(f"{name}={given}: a sweep needs at least one value and each only once, e.g. {name}=[0,1]")


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
