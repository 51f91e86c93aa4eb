"""The resources of a run: how many, whether this machine has them, and who gets them."""

from __future__ import annotations

import os
from itertools import chain

import yaml

from introspect_ray.config import RunConfig, override
from introspect_ray.config.compatibility import learner_labels, trainer_gpus, workers_text
from introspect_ray.config.judges import JudgeConfig
from introspect_ray.errors import UserError

Resources = dict[str, float]  # by Ray's names, "CPU" and "GPU"; without those of which nothing is needed
OVERSUBSCRIPTION = 2  # logical CPUs per core: at lag 0 trainer and engine take turns
MIN_CORES = 2  # the smallest machine the defaults are made for


def bundles(cfg: RunConfig, *, trainers: bool = True, engines: bool = True) -> list[Resources]:
    """The placement group of one trial, all or nothing: a bundle per training worker, then one per engine.

    Elastic workers are in no group: Ray Train makes one for as many as there is room for (`trainers` is False then).
    Over ipc an engine shares the GPU of a trainer, and so its bundle: engine i is in bundle i. The relabeler is not in
    it: it needs no resources, and stays on the driver's node, which is not taken away.
    """
    trainer, engine = worker_resources(cfg), engine_resources(cfg)
    made = [trainer] * cfg.train.max_workers if trainers else []
    if not engines:
        return made
    beside = min(cfg.rollout.num_actors, len(made)) if cfg.rollout.weight_transfer == "ipc" else 0
    paired = [_sum(one, engine) for one in made[:beside]]
    alone = cfg.rollout.num_actors - beside if engine else 0  # Ray refuses a bundle of nothing
    return [*paired, *made[beside:], *[engine] * alone]


def fewest(cfg: RunConfig) -> RunConfig:
    """`cfg` with the fewest of its elastic workers, which is what it needs to run at all."""
    return override(cfg, {"train.num_workers": cfg.train.min_workers})


def worker_resources(cfg: RunConfig) -> Resources:
    """Logical resources of one training worker."""
    return _resources(cfg.train.num_cpus, trainer_gpus(cfg))


def engine_resources(cfg: RunConfig) -> Resources:
    """Logical resources of one rollout actor."""
    return _resources(cfg.rollout.num_cpus, cfg.rollout.num_gpus)


def _resources(cpus: float, gpus: float) -> Resources:
    return {name: count for name, count in (("CPU", cpus), ("GPU", gpus)) if count}


def _sum(*parts: Resources) -> Resources:
    """Of all parts together, e.g. {"CPU": 2, "GPU": 1}."""
    return {name: sum(part.get(name, 0.0) for part in parts) for name in dict.fromkeys(chain.from_iterable(parts))}


def set_up_in_group(cfg: RunConfig) -> bool:
    """Whether an engine that only labels for the set-up fits into a training worker's bundle, before there are workers.

    Such an engine is that of the second policy of a mixed run, or of a reference_policy. The worker that makes the
    reference cache is there too; whoever comes second waits, and none waits for the other's result.
    """
    room = {} if cfg.train.elastic else worker_resources(cfg)
    return all(count <= room.get(name, 0.0) for name, count in engine_resources(cfg).items())


def apart(cfg: RunConfig) -> list[Resources]:
    """What a run needs beside its placement group: an engine per judging policy, and one for the set-up of a mixed run
    that has no room in the group."""
    count = len(judging_policies(cfg)) + (cfg.supervision.rule == "mixed" and not set_up_in_group(cfg))
    return [engine_resources(cfg)] * count


def phases(cfg: RunConfig) -> list[list[Resources]]:
    """The placement groups that a run holds one after another: one, or with rollout.release those of set-up, training
    and evaluation."""
    if not cfg.rollout.release:
        return [bundles(cfg)]
    return [bundles(set_up_config(cfg)), bundles(cfg, engines=False), bundles(cfg, trainers=False)]


def set_up_config(cfg: RunConfig) -> RunConfig:
    """`cfg` as far as the set-up's placement group goes: with one training worker's bundle, for the reference, where
    the group is not that of the training."""
    return override(cfg, {"train.num_workers": 1}) if cfg.rollout.release else cfg


def resources(cfg: RunConfig) -> dict[str, float]:
    """Logical resources of a run: {"CPU", "GPU"}. Those of its placement group and of what is beside it."""
    widest = [_sum({"CPU": 0.0, "GPU": 0.0}, *group) for group in phases(cfg)]
    return _sum({name: max(group[name] for group in widest) for name in ("CPU", "GPU")}, *apart(cfg))


def judging_policies(cfg: RunConfig) -> dict[str, list[JudgeConfig]]:
    """The local policies that judge, each with its judges: both judges may be one policy with two instructions."""
    found: dict[str, list[JudgeConfig]] = {}
    for judge in (cfg.judge, cfg.judge.second):
        if judge and judge.policy:
            found.setdefault(judge.policy, []).append(judge)
    return found


def plan_text(cfg: RunConfig, trials: int, train_cases: int, test_cases: int, longest: int) -> str:
    """What --dry-run and jobs/plan.py print: the resolved config, the resource budget and the placement."""
    need = resources(cfg)
    config = yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()
    return (
        f"{config}\n"
        f"---\ntrials: {trials}  cases: {train_cases} train, {test_cases} test  longest sequence: {longest} tokens\n"
        f"budget: {need['CPU']:g} logical CPUs, {need['GPU']:g} GPUs\n"
        f"placement: {workers_text(cfg)} training worker(s) x {cfg.train.num_cpus:g} CPU"
        f"{' + 1 GPU' if cfg.train.use_gpu else ''}; "
        f"{cfg.rollout.num_actors} {cfg.rollout.served_by} rollout actor(s) x {cfg.rollout.num_cpus:g} CPU + "
        f"{cfg.rollout.num_gpus:g} GPU; {_judged_by(cfg)}relabeler and status board: 0 CPU\n"
        f"labels: {_labelled_by(cfg)}"
    )


def _judged_by(cfg: RunConfig) -> str:
    count = len(judging_policies(cfg))
    return f"{count} judging engine(s) x the same; " if count else ""


def _labelled_by(cfg: RunConfig) -> str:
    """Who makes the labels of a run, and when."""
    if cfg.supervision.rule != "online":
        return f"{cfg.supervision.rule}, once, before training"
    who = "the rollout actors, weights are sent to them"
    if learner_labels(cfg):
        who = "the training workers, no weights are sent"
    every = f"every {cfg.rollout.sync_every} steps" if cfg.rollout.sync_every > 1 else "every step"
    return f"online, {every}, by {who}; lag {cfg.lag}"


def check_local_room(cfg: RunConfig) -> None:
    """Refuse a run that this machine has no room for. Raises UserError with the numbers."""
    need, cores = resources(cfg), os.cpu_count() or 1
    room = max(cores, MIN_CORES) * OVERSUBSCRIPTION
    if need["CPU"] > room:
        raise UserError(
            f"no room for the requested workers: train.num_workers={workers_text(cfg)} and rollout.num_actors="
            f"{cfg.rollout.num_actors} need {need['CPU']:g} logical CPUs, this machine has {cores} cores, room for "
            f"{room}: lower them, or name a cluster with ray_address"
        )
    _check_memory(cfg)
    if need["GPU"]:
        import torch

        have = torch.cuda.device_count()
        if need["GPU"] > have:
            raise UserError(
                f"no room for the requested workers: the run needs {need['GPU']:g} GPUs, this machine has {have}: "
                "lower train.num_workers or rollout.num_actors, or name a cluster with ray_address"
            )


def _check_memory(cfg: RunConfig) -> None:
    """Refuse KV caches that this machine's memory cannot hold. Raises UserError with the numbers."""
    rollout, memory = cfg.rollout, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    need = rollout.num_actors * rollout.kv_cache_bytes
    if rollout.served_by == "vllm" and not rollout.num_gpus and need > memory:
        raise UserError(
            f"rollout.kv_cache_bytes={rollout.kv_cache_bytes} for rollout.num_actors={rollout.num_actors} is "
            f"{need >> 20:,} MiB, and this machine has {memory >> 20:,} MiB of memory: lower it"
        )
