"""The resources of a run: how many, whether this machine has them, and who gets them."""

from __future__ import annotations

import os

import yaml

from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import learner_labels, trainer_gpus, workers_text
from introspect_ray.config.judges import JudgeConfig
from introspect_ray.errors import UserError

OVERSUBSCRIPTION = 2  # logical CPUs per core: at lag 0 trainer and engine take turns
MIN_CORES = 2  # the smallest machine the defaults are made for


def resources(cfg: RunConfig, *, least: bool = False) -> dict[str, float]:
    """Logical resources of a run at its widest: {"CPU", "GPU"}. least: with the fewest elastic workers, not the most.

    Two phases run beside the engines: first the worker that makes the reference cache together with the second engine
    of a mixed run; then, when both have ended, the training workers. Each judging policy (judge.policy) has an engine
    all the time. The engine of a reference_policy is not counted: without room beside that worker, it starts when the
    worker has ended. Neither waits for the other's result while it holds its resources.
    """
    cached, mixed = cfg.train.reference == "cache", cfg.supervision.rule == "mixed"
    workers = cfg.train.min_workers if least else cfg.train.max_workers

    def widest(trainer: float, engine: float) -> float:
        engines = cfg.rollout.num_actors + len(judging_policies(cfg))
        return engines * engine + max(workers * trainer, cached * trainer + mixed * engine)

    return {
        "CPU": widest(cfg.train.num_cpus, cfg.rollout.num_cpus),
        "GPU": widest(trainer_gpus(cfg), cfg.rollout.num_gpus),
    }


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
        return f"{cfg.supervision.rule}, once, by the rollout actors"
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
    if need["GPU"]:
        import torch

        have = torch.cuda.device_count()
        if need["GPU"] > have:
            raise UserError(
                f"no room for the requested workers: the run needs {need['GPU']:g} GPUs, this machine has {have}: "
                "lower train.num_workers or rollout.num_actors, or name a cluster with ray_address"
            )
