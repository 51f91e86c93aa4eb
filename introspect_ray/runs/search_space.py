"""A sweep over one config key, or a joint grid over several: values, trials, score. sweep.py runs it.

Trials share a set-up (engines, cases, M0's labels, its reference) if they differ in SWEEPABLE keys alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.config import RunConfig, flatten, load_config, override, read_yaml
from introspect_ray.errors import UserError
from introspect_ray.runs.drawn import draw, is_drawn, points


def gap(summary: dict[str, Any]) -> float:
    """Self - Orig Explanation EM, the size of introspective coupling (paper §2.3), on the dev split: what is chosen by
    it can be reported on the test split. Without a dev split (eval.dev_fraction=0) it is that of the test split."""
    found: float = (summary["dev"] or summary)["gap"]["em"]["value"]
    return found


@dataclass(frozen=True)
class Space:
    """One swept key: its dotted name, its default values, and what a sweep over it fixes besides."""

    key: str
    values: tuple[Any, ...]
    fixed: dict[str, Any]

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
    "supervision.rule",
    "supervision.wrong_label",
    "auxiliary.weight",
    "loss_normalisation",
    "batch_size",
    "steps",
    "lag",
    "train.weight_decay",
    "train.max_grad_norm",
)
# Keys that may differ too, as the set-up does not depend on them.
_OWN = ("seed", "output_dir", "cache_dir", "patience_s", "tracking.backend", "tracking.uri", "tracking.experiment")
# lists that are not the swept key's
_OTHER_LISTS = ("seed", "seeds", "eval.against", "judge.labels", "judge.second.labels", "train.num_workers")


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


def chosen_spaces(names: Sequence[str], overrides: Mapping[str, Any]) -> tuple[Space, ...]:
    """What a command line asks for: a paper's sweep by name, each key that takes a list or a distribution (drawn.py);
    several make a joint grid. A list of the named sweep's key takes the place of the paper's values.

    Raises UserError if it asks for none, for one that there is not, or for keys that fix different things.
    """
    if names and (len(names) > 1 or names[0] not in PAPER_SWEEPS):
        raise UserError(f"sweep {' '.join(names)}: give one name of {', '.join(PAPER_SWEEPS)}, or key=[value, ...]")
    named = [PAPER_SWEEPS[name].key for name in names]
    given = [key for key, value in overrides.items() if _is_swept(value) and key not in _OTHER_LISTS]
    if not named and not given:
        raise UserError(
            "sweep: no key takes a list; give one key a list, e.g. kl_weight=[0,1], or several for a joint grid, or "
            f"name a paper's sweep: {', '.join(PAPER_SWEEPS)}"
        )
    spaces = tuple(space_of(key) for key in dict.fromkeys([*named, *given]))
    fixed_by_all(spaces)
    return spaces


def _is_swept(value: Any) -> bool:
    return isinstance(value, list) or is_drawn(value)


def fixed_by_all(spaces: Sequence[Space]) -> dict[str, Any]:
    """What a joint grid fixes. Raises UserError if two of its keys need different values of a third."""
    fixed: dict[str, Any] = {}
    for space in spaces:
        for key, value in space.fixed.items():
            if key in {one.key for one in spaces}:  # swept itself
                continue
            if fixed.setdefault(key, value) != value:
                keys = " and ".join(one.key for one in spaces)
                raise UserError(f"{keys} cannot be swept together: they need {key}={fixed[key]} and {key}={value}")
    return fixed


def load_sweep(
    space: Space, file: str | None, overrides: dict[str, Any], defaults: dict[str, Any]
) -> tuple[list[Any], list[int], RunConfig]:
    """`load_grid` of one key: (values of the swept key, seeds, the config of everything else)."""
    (values,), seeds, cfg = load_grid((space,), file, overrides, defaults)
    return values, seeds, cfg


def load_grid(
    spaces: Sequence[Space], file: str | None, overrides: dict[str, Any], defaults: dict[str, Any]
) -> tuple[list[list[Any]], list[int], RunConfig]:
    """(values of each swept key, seeds, the config of everything else). `defaults`: the job's, as in load_config.

    Without seed and seeds on the command line the config's seed is the only one. Raises UserError.
    """
    values, seeds, rest = split_overrides(spaces, overrides)
    in_file = flatten(read_yaml(Path(file))) if file else {}
    for space in spaces:
        if space.key in in_file:
            raise UserError(f"{file} sets {space.key}, which is swept: give {space.key}=[...] on the command line")
    _check_fixed(spaces, in_file)
    cfg = load_config(file, rest, defaults)
    return values, seeds if {"seed", "seeds"} & overrides.keys() else [cfg.seed], cfg


def _check_fixed(spaces: Sequence[Space], given: dict[str, Any]) -> None:
    fixed = fixed_by_all(spaces)
    clash = {key: given[key] for key, value in fixed.items() if given.get(key, value) != value}
    if clash:
        keys = " and ".join(space.key for space in spaces)
        raise UserError(f"{clash} does not go with a sweep over {keys}, which needs {fixed}: leave it out")


def split_overrides(
    spaces: Sequence[Space], overrides: dict[str, Any]
) -> tuple[list[list[Any]], list[int], dict[str, Any]]:
    """(values of each swept key, seeds, the other overrides). Raises UserError for empty or repeated values."""
    _check_fixed(spaces, overrides)
    rest = {**overrides, **fixed_by_all(spaces)}
    values = [rest.pop(space.key, list(space.values)) for space in spaces]
    seeds = rest.pop("seeds", [rest.pop("seed", 0)])
    *values, seeds = (v if _is_swept(v) else [v] for v in (*values, seeds))
    for space, given in zip(spaces, values, strict=True):
        check_values(space, given, seeds)
    return values, seeds, rest


def check_values(space: Space, values: Sequence[Any], seeds: Sequence[int]) -> None:
    """Raises UserError for empty or repeated values or seeds."""
    for name, given in ((space.key, values), ("seeds", seeds)):
        if is_drawn(given):
            draw(name, str(given), 1, 0)  # its bounds
        elif not given or len({_shown(one) for one in given}) < len(given):
            raise UserError(f"{name}={given}: a sweep needs at least one value and each only once, e.g. {name}=[0,1]")


def _shown(value: Any) -> str:
    """A value as it stands in a folder's name: 1 and 1.0 are one trial."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def shown_name(point: Mapping[str, Any]) -> str:
    """Example: "kl_weight=0.1,learning_rate=0.003,seed=0"."""
    return ",".join(f"{name}={_shown(value)}" for name, value in point.items())


def trial_config(cfg: RunConfig, space: Space, value: Any, seed: int) -> RunConfig:
    """The run of one trial: the base config with the swept key, the seed and a folder of its own."""
    return _trial(cfg, (space,), (value,), seed).cfg


def _trial(cfg: RunConfig, spaces: Sequence[Space], values: Sequence[Any], seed: int) -> Trial:
    root = cfg.output_dir.rstrip("/")
    point = {**{space.leaf: value for space, value in zip(spaces, values, strict=True)}, "seed": seed}
    swept = {space.key: value for space, value in zip(spaces, values, strict=True)}
    folders = {"output_dir": f"{root}/trials/{shown_name(point)}", "cache_dir": cfg.cache_dir or f"{root}/cache"}
    return Trial(override(cfg, {**swept, "seed": seed, **folders}), point)


@dataclass(frozen=True)
class Trial:
    """One run of a sweep. point: the swept values by the last part of their keys, and the seed."""

    cfg: RunConfig
    point: Mapping[str, Any]


def grid(cfg: RunConfig, spaces: Sequence[Space], values: Sequence[Sequence[Any]], seeds: Sequence[int]) -> list[Trial]:
    """The trials of a joint grid: every combination of the keys' values, drawn ones among them, with every seed.

    Raises UserError for a key that is for a run of its own.
    """
    if cfg.rollout.release:
        raise UserError("rollout.release is for `train`: the trials of a sweep share its engines, leave it out")
    made = points([space.key for space in spaces], values, cfg.sweep.samples, cfg.sweep.seed)
    return [_trial(cfg, spaces, point, seed) for point in made for seed in seeds]


# --- trials that share a set-up ------------------------------------------------------------------------------------


def setup_key(cfg: RunConfig) -> str:
    """Equal for runs that can be trials on one set-up: all of the config but SWEEPABLE keys, seed and folders."""
    flat = flatten(cfg.model_dump(mode="json"))
    return json.dumps({key: value for key, value in flat.items() if key not in (*SWEEPABLE, *_OWN)}, sort_keys=True)


def shared_config(trials: Sequence[RunConfig]) -> RunConfig:
    """The config to make the set-up of these trials with: that of the first, asking for as much as any of them does.

    The second policy is labelled for if one trial mixes its labels in, and engines have room for the largest adapter.
    """
    keys: dict[str, Any] = {"lora_rank": max(trial.lora_rank for trial in trials)}
    if any(trial.supervision.rule == "mixed" for trial in trials):
        keys["supervision.rule"] = "mixed"
    return override(trials[0], keys)


def by_setup(trials: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """The trials in groups that share a set-up, in the order in which groups first appear."""
    groups: dict[str, list[RunConfig]] = {}
    for trial in trials:
        groups.setdefault(setup_key(trial), []).append(trial)
    return list(groups.values())
