"""How many GPUs of a run train and how many sample: what fits in memory, with even work per GPU."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from introspect_ray.config import RunConfig, override
from introspect_ray.planning.assumptions import Assumptions
from introspect_ray.planning.memory import engine_memory, trainer_memory
from introspect_ray.planning.model_shape import ModelShape
from introspect_ray.planning.work import CaseSizes, Part
from introspect_ray.runs.placement import bundles, resources
from introspect_ray.runs.slots import engines_shared, needed, place

TENSOR_PARALLEL = (1, 2, 4, 8)
NODE_GPUS = 8  # of a node with H100s


def gpus_of(cfg: RunConfig) -> int:
    """GPUs of one run, as --dry-run counts them."""
    return math.ceil(resources(cfg)["GPU"])


def more_gpus(cfg: RunConfig) -> int:
    """GPUs of each further run of a sweep: runs that ask no engine while they train share those of the first."""
    return math.ceil(sum(one.get("GPU", 0.0) for one in bundles(cfg, engines=not engines_shared([cfg]))))


def runs_at_once(cfg: RunConfig, gpus: int, trials: int) -> int:
    """Runs of a sweep that have room side by side on nodes of NODE_GPUS, placed as the sweep places them: each takes
    all that it needs or waits."""
    nodes = [{"GPU": float(min(NODE_GPUS, gpus - first)), "CPU": math.inf} for first in range(0, gpus, NODE_GPUS)]
    groups = needed(cfg, engines_shared([cfg]), trials)
    return max(0, place(nodes, groups) - (len(groups) - trials))


def tensor_parallel(shape: ModelShape, case: CaseSizes, cfg: RunConfig, a: Assumptions, given: Collection[str]) -> int:
    """The given tensor parallelism, else the least that holds weights and KV cache, else the largest."""
    if "rollout.tensor_parallel_size" in given:
        return cfg.rollout.tensor_parallel_size
    return next((tp for tp in TENSOR_PARALLEL if engine_memory(shape, case, cfg, a, tp).fits), TENSOR_PARALLEL[-1])


def splits(cfg: RunConfig, parts: Sequence[Part], gpus: int, tp: int, given: Collection[str]) -> list[RunConfig]:
    """`cfg` with each number of training GPUs, and as many engines of `tp` GPUs as even the FLOPs per GPU of a step.

    Keys that were `given` are kept. A step's batch is dealt evenly to the engines (schedule.step_group).
    """
    steps = [part for part in parts if part.per == "step"]
    training, sampling = (sum(part.flops for part in steps if part.by == by) for by in ("trainers", "engines"))
    most = max(1, min(cfg.batch_size, gpus - tp))
    found = []
    for workers in [cfg.train.max_workers] if "train.num_workers" in given else range(1, most + 1):
        engines = min(cfg.batch_size, max(1, math.ceil(workers * sampling / training / tp)))
        changes = {
            "train.num_workers": workers,
            "rollout.num_actors": engines,
            "rollout.num_gpus": tp,
            "rollout.tensor_parallel_size": tp,
        }
        found.append(override(cfg, {key: value for key, value in changes.items() if key not in given}))
    return found


def choose_split(
    found: Sequence[RunConfig], shape: ModelShape, case: CaseSizes, a: Assumptions, gpus: int, trials: int
) -> RunConfig:
    """Of the splits that fit in memory and on `gpus` GPUs: the most runs side by side, then the fewest cases on a
    training GPU, then the fewest GPUs. Where none fits, the one of the most training GPUs or of the fewest GPUs."""

    def rank(cfg: RunConfig) -> tuple[float, ...]:
        workers = cfg.train.max_workers
        if trainer_memory(shape, case, cfg, workers).total > 1e9 * a.memory_gb:
            return math.inf, -workers
        if gpus_of(cfg) > gpus:
            return 1, gpus_of(cfg)
        return -runs_at_once(cfg, gpus, trials), -(-cfg.batch_size // workers), gpus_of(cfg)

    return min(found, key=rank)
