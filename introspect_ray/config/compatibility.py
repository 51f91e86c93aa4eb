"""How weights reach the engines: the choice `rollout.weight_transfer` leaves open, and what cannot work."""

from __future__ import annotations

from typing import Literal

from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError

Transfer = Literal["object_store", "nccl", "ipc"]


def weight_transfer(cfg: RunConfig) -> Transfer:
    """The transfer of a run. auto: nccl where vLLM engines and the trainer have whole GPUs of their own and the
    full policy moves, else object_store. Raises UserError where the one asked for cannot work."""
    asked = cfg.rollout.weight_transfer
    reason = _obstacle(cfg, "nccl" if asked == "auto" else asked)
    if asked == "auto":
        return "object_store" if reason else "nccl"
    if reason:
        raise UserError(f"rollout.weight_transfer={asked} {reason}, or set rollout.weight_transfer=auto")
    return asked


def learner_labels(cfg: RunConfig) -> bool:
    """Whether the training workers label, on their own weights, instead of the engines."""
    return cfg.supervision.rule == "online" and cfg.rollout.engine == "learner"


def trainer_gpus(cfg: RunConfig) -> float:
    """GPUs of one training worker: a whole one, or what a colocated engine leaves of it."""
    if not cfg.train.use_gpu:
        return 0.0
    return 1.0 - cfg.rollout.num_gpus if cfg.rollout.weight_transfer == "ipc" else 1.0


def _obstacle(cfg: RunConfig, kind: Transfer) -> str | None:
    """Why `kind` cannot work, and the remedy; None if it can."""
    rollout, train = cfg.rollout, cfg.train
    if kind == "object_store":
        return None
    if rollout.engine != "vllm":
        return f"is vLLM's, the engine is {rollout.engine}: set rollout.engine=vllm"
    if cfg.method == "lora":
        return "moves whole policies, and method=lora sends its adapter alone: use object_store"
    if not train.use_gpu or not rollout.num_gpus:
        return (
            f"needs GPUs on both sides, here train.use_gpu={str(train.use_gpu).lower()} and rollout.num_gpus="
            f"{rollout.num_gpus:g}: set both"
        )
    if kind == "nccl" and rollout.num_gpus < rollout.tensor_parallel_size:
        return f"needs whole GPUs, rollout.num_gpus={rollout.num_gpus:g}: raise it to 1 an engine, or use ipc to share"
    if kind == "ipc" and rollout.num_gpus >= 1:
        return f"is for an engine on its trainer's GPU, rollout.num_gpus={rollout.num_gpus:g}: lower it below 1"
    if kind == "ipc" and rollout.num_actors > train.num_workers:
        return (
            f"gives each engine the GPU of one trainer, rollout.num_actors={rollout.num_actors} exceeds "
            f"train.num_workers={train.num_workers}: lower it"
        )
    if kind == "ipc" and rollout.num_actors > 1 and rollout.num_gpus <= 0.5:  # Ray fills a GPU before it takes another
        return (
            f"gives each engine the GPU of one trainer, but two engines of rollout.num_gpus={rollout.num_gpus:g} fit "
            f"on one, where Ray puts them (rollout.num_actors={rollout.num_actors}): raise rollout.num_gpus above 0.5"
        )
    return None
