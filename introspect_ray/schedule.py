"""Which cases, texts and weight version a training step uses. Pure functions of the config and the step.

Replay, audit, recovery and every rank compute the same schedule, so a run keeps no log of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from introspect_ray.config import RunConfig, override
from introspect_ray.config.compatibility import learner_labels
from introspect_ray.rng import bits

T = TypeVar("T")


@lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, count: int, stream: str) -> np.ndarray:
    """A seeded permutation of range(count), int32 [count]: the indices sorted by their hash in `stream`."""
    keys = np.fromiter((bits(seed, epoch, i, stream) for i in range(count)), np.uint64, count)
    return np.argsort(keys, kind="stable").astype(np.int32)


def step_plan(seed: int, step: int, num_cases: int, batch_size: int) -> list[int]:
    """Case indices of one training step, [batch_size].

    Each epoch is a seeded permutation of all cases, and steps cut the row of epochs into batches. So every case comes
    once per epoch, and a batch across two epochs can hold a case twice. Raises ValueError for a negative step, no cases
    or an empty batch.
    """
    return _plan(seed, step, num_cases, batch_size, "epoch")


def auxiliary_plan(seed: int, step: int, num_texts: int, batch_size: int) -> list[int]:
    """Rows of the auxiliary texts of one training step, [batch_size]: step_plan's rule in a stream of its own."""
    return _plan(seed, step, num_texts, batch_size, "auxiliary epoch")


def _plan(seed: int, step: int, count: int, batch_size: int, stream: str) -> list[int]:
    if count < 1 or batch_size < 1 or step < 0:
        raise ValueError(
            f"a plan needs step >= 0, num_cases (num_texts) >= 1, batch_size >= 1, got {step}, {count}, {batch_size}"
        )
    places = (divmod(place, count) for place in range(step * batch_size, (step + 1) * batch_size))
    return [int(_epoch_order(seed, epoch, count, stream)[i]) for epoch, i in places]


def plan_ids(cfg: RunConfig, case_ids: Sequence[str], step: int) -> list[str]:
    """Case ids of training step `step`. case_ids: of all training cases, in plan order."""
    return [case_ids[i] for i in step_plan(cfg.seed, step, len(case_ids), cfg.batch_size)]


def label_version(step: int, lag: int, sync_every: int) -> int:
    """The weight version that the labels of `step` are made with: step - lag, rounded down to a delivered version.

    Example: step 7, lag 1, sync_every 4 -> 4.
    """
    return max(0, step - lag) // sync_every * sync_every


def steps_of_version(version: int, cfg: RunConfig) -> list[int]:
    """The training steps whose labels are made with `version`: what is requested once it is delivered."""
    last = min(cfg.steps, version + cfg.lag + cfg.rollout.sync_every)
    first = 0 if version == 0 else version + cfg.lag
    return [t for t in range(first, last) if label_version(t, cfg.lag, cfg.rollout.sync_every) == version]


def steps_due(step: int, start: int, cfg: RunConfig) -> list[int]:
    """The training steps whose labels are requested when a run that started at `start` comes to `step`.

    Online: those of this version. Labels of M0 alone: one step ahead, so that they are made while a step trains.
    """
    if cfg.supervision.rule == "online":
        return steps_of_version(step, cfg)
    return list(range(step if step == start else step + 1, min(cfg.steps, step + 2)))


def delivery_number(version: int, cfg: RunConfig) -> int:
    """How many deliveries to the engines come before that of `version`; it decides the delivery's probe.

    Example: version 8 at sync_every 4 -> 2.
    """
    by_labels = cfg.supervision.rule == "online" and not learner_labels(cfg)
    return version // (cfg.rollout.sync_every if by_labels else max(1, cfg.eval.every))


def step_group(cfg: RunConfig) -> int:
    """Cases of a step that one engine answers together: rollout.group_size, or else the batch dealt evenly.

    lag + sync_every steps are labelled at a time, so that each of them has its part of the engines. Example: 8 cases on
    4 engines in groups of 2 at lag 0, of 4 at lag 1.
    """
    if cfg.rollout.group_size is not None:
        return cfg.rollout.group_size
    engines = -(-cfg.rollout.num_actors // (cfg.lag + cfg.rollout.sync_every))
    return min(cfg.rollout.bulk_group, -(-cfg.batch_size // engines))


def idle_engines(cfg: RunConfig) -> int:
    """Engines that cannot be busy while the labels of online supervision are made, for want of groups."""
    if cfg.supervision.rule != "online" or learner_labels(cfg):
        return 0
    groups = -(-cfg.batch_size // step_group(cfg)) * (cfg.lag + cfg.rollout.sync_every)
    return max(0, cfg.rollout.num_actors - groups)


def idle_warning(cfg: RunConfig) -> str | None:
    """One line on engines that cannot be busy, with the remedy; None if all can."""
    idle, rollout = idle_engines(cfg), cfg.rollout
    if not idle:
        return None
    fewer = f"lower rollout.num_actors to {rollout.num_actors - idle}"
    spread = override(cfg, {"rollout.group_size": None})
    if idle_engines(spread) < idle:
        fewer += f", or leave rollout.group_size={rollout.group_size} out (groups of {step_group(spread)})"
    return (
        f"{idle} of {rollout.num_actors} engines have nothing to do while a step is labelled (batch_size="
        f"{cfg.batch_size} in groups of {step_group(cfg)}, lag={cfg.lag}): {fewer}"
    )


def deal(items: Sequence[T], size: int, engines: int, first: int) -> list[tuple[int, Sequence[T]]]:
    """Cut `items` into groups of `size` and deal them to the engines in turn, from engine `first` on: (engine, group).

    Example: abc in groups of 2 to 2 engines, first 1 -> [(1, ab), (0, c)].
    """
    groups = [items[i : i + size] for i in range(0, len(items), size)]
    return [((first + i) % engines, group) for i, group in enumerate(groups)]
