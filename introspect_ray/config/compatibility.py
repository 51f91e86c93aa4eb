"""Which keys of a configuration go together: every such rule, and what some keys mean for others.

`check` is called by RunConfig's validator, so each RunConfig that exists has passed it. What depends on the machine
(devices, installed engines, files) is checked when a run is prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from introspect_ray.config.values import value_problem

if TYPE_CHECKING:
    from pydantic import BaseModel

    from introspect_ray.config.sections import RunConfig

Transfer = Literal["object_store", "nccl", "ipc"]
_KEYS_OF_TASK = {"cue": "aita", "roles": "refusal", "response_tokens": "refusal"}  # keys that one task alone reads


def check(cfg: RunConfig) -> None:
    """Raises ValueError for the first rule that `cfg` breaks; the message says what, the numbers and the remedy."""
    for rule in _RULES:
        if problem := rule(cfg):
            raise ValueError(problem)


def weight_transfer(cfg: RunConfig) -> Transfer:
    """How the weights of a run reach its engines. auto: nccl where it works, else object_store."""
    asked = cfg.rollout.weight_transfer
    if asked != "auto":
        return asked
    return "object_store" if _transfer_obstacle(cfg, "nccl") else "nccl"


def workers(value: object) -> int | tuple[int, int]:
    """train.num_workers: a number, or [min, max]. Raises ValueError."""
    if type(value) is int and value >= 1:
        return value
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(one) is int for one in value):
        least, most = value
        if 1 <= least < most:
            return least, most
    raise ValueError("expected a number of workers, or [min, max] with 1 <= min < max")


def workers_text(cfg: RunConfig) -> str:
    """train.num_workers as it is written on a command line."""
    return str(cfg.train.num_workers).replace("(", "[").replace(", ", ",").replace(")", "]")


def engines_rest(cfg: RunConfig) -> bool:
    """Whether engines give their GPU's memory back between labelling turns: those that share it with a trainer which
    waits for their labels, and then trains while they have nothing to do."""
    return weight_transfer(cfg) == "ipc" and cfg.lag == 0 and cfg.rollout.sync_every == 1


def learner_labels(cfg: RunConfig) -> bool:
    """Whether the training workers label, on their own weights, instead of the engines."""
    return cfg.supervision.rule == "online" and cfg.rollout.engine == "learner"


def reference_policy(cfg: RunConfig) -> str | None:
    """The reference policy, where it is another one than the policy that training starts from."""
    return None if cfg.reference_policy == cfg.policy else cfg.reference_policy


def trainer_gpus(cfg: RunConfig) -> float:
    """GPUs per training worker: a whole one, or what an engine that shares it leaves."""
    if not cfg.train.use_gpu:
        return 0.0
    return 1.0 - cfg.rollout.num_gpus if cfg.rollout.weight_transfer == "ipc" else 1.0


def _second_policy(cfg: RunConfig) -> str | None:
    if cfg.supervision.rule == "mixed" and not cfg.supervision.second_policy:
        return "supervision.rule=mixed needs supervision.second_policy: folder, hub id, organism:second"
    return None


def _serving_engine(cfg: RunConfig) -> str | None:
    serving = cfg.rollout.serving_engine
    if cfg.rollout.engine == "vllm" and serving != "vllm":
        return (
            f"rollout.serving_engine={serving} does not go with rollout.engine=vllm: set rollout.engine={serving}, or "
            "rollout.engine=learner, which it is for"
        )
    return None


def _tensor_parallel(cfg: RunConfig) -> str | None:
    rollout = cfg.rollout
    if rollout.tensor_parallel_size > 1 and rollout.num_gpus < rollout.tensor_parallel_size:
        return (
            f"rollout.tensor_parallel_size={rollout.tensor_parallel_size} needs as many GPUs per actor, "
            f"rollout.num_gpus={rollout.num_gpus:g}: raise rollout.num_gpus"
        )
    return None


def _live_reference(cfg: RunConfig) -> str | None:
    if cfg.train.reference == "live" and cfg.method != "lora":
        return "train.reference=live needs method=lora (the reference is the policy with adapters off)"
    if cfg.train.reference == "live" and reference_policy(cfg):
        return (
            f"train.reference=live keeps to the policy that training starts from, and reference_policy="
            f"{cfg.reference_policy} is another one: leave train.reference out (cache)"
        )
    return None


def _gpu_only(cfg: RunConfig) -> str | None:
    given = {"train.attention=flex": cfg.train.attention == "flex", "train.offload=true": cfg.train.offload}
    for key, on in given.items():
        if on and not cfg.train.use_gpu:
            return f"{key} is for a GPU: set train.use_gpu=true, or leave {key} out"
    return None


def _batch_over_workers(cfg: RunConfig) -> str | None:
    if cfg.batch_size < cfg.train.max_workers:
        return (
            f"batch_size={cfg.batch_size} leaves some of the workers (train.num_workers={workers_text(cfg)})"
            " without a case: raise batch_size or lower train.num_workers"
        )
    return None


def _elastic(cfg: RunConfig) -> str | None:
    if cfg.train.elastic and not (cfg.rollout.num_cpus or cfg.rollout.num_gpus):
        return (
            f"train.num_workers={workers_text(cfg)} is chosen beside engines that take room, here rollout.num_cpus=0 "
            "and rollout.num_gpus=0: raise one of them"
        )
    return None


def _auxiliary_source(cfg: RunConfig) -> str | None:
    if cfg.auxiliary.path is not None and cfg.auxiliary.hub_id is not None:
        return (
            f"auxiliary.path={cfg.auxiliary.path} and auxiliary.hub_id={cfg.auxiliary.hub_id} name two sources of one "
            "set: leave one of them out"
        )
    if cfg.auxiliary.path is None and cfg.auxiliary.hub_id is None and cfg.auxiliary != type(cfg.auxiliary)():
        key, value = _first_set(cfg.auxiliary)
        return f"auxiliary.{key}={value} has no effect without auxiliary.path or auxiliary.hub_id: set one of them"
    return None


def _task_source(cfg: RunConfig) -> str | None:
    if cfg.task.path is not None and cfg.task.hub_id is not None:
        return f"task.hub_id={cfg.task.hub_id} has no effect beside task.path={cfg.task.path}: leave one of them out"
    return None


def _task_keys(cfg: RunConfig) -> str | None:
    for key, owner in _KEYS_OF_TASK.items():
        value = getattr(cfg.task, key)
        if value != type(cfg.task).model_fields[key].default and cfg.task.name != owner:
            return f"task.{key}={value} is for task.name={owner}, and has no effect with {cfg.task.name}: leave it out"
    return None


def _first_set(section: BaseModel) -> tuple[str, object]:
    """The first key of a section that differs from its default, and its value."""
    default = type(section)()
    return next((key, value) for key, value in section if value != getattr(default, key))


def _sentences(cfg: RunConfig) -> str | None:
    for key, sentence in (("task.changed", cfg.task.changed), ("task.unchanged", cfg.task.unchanged)):
        if sentence is not None and (count := sentence.count("{label}")) != 1:
            return f"{key}={sentence!r} has {count} times {{label}}: write it exactly once, where the answer stands"
    if cfg.task.explanation != "own" and cfg.task.changed is not None and cfg.task.unchanged is not None:
        return (
            f"task.explanation={cfg.task.explanation} has no effect, since task.changed and task.unchanged give both "
            "sentences: leave it out"
        )
    return None


def _transfer(cfg: RunConfig) -> str | None:
    asked = cfg.rollout.weight_transfer
    obstacle = None if asked == "auto" else _transfer_obstacle(cfg, asked)
    return f"rollout.weight_transfer={asked} {obstacle}, or set rollout.weight_transfer=auto" if obstacle else None


def _transfer_obstacle(cfg: RunConfig, kind: Transfer) -> str | None:
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
    if kind == "nccl":
        if rollout.num_gpus < rollout.tensor_parallel_size:
            return f"needs whole GPUs, rollout.num_gpus={rollout.num_gpus:g}: raise it to 1 per engine, or use ipc"
        return None
    return _shared_gpu_obstacle(cfg)


def _shared_gpu_obstacle(cfg: RunConfig) -> str | None:
    """Why engines cannot share the trainers' GPUs (ipc), and the remedy.

    Each GPU has one engine and one trainer. Ray gives a part of a GPU from the one of which least is left that has it:
    no two engines fit on one if each takes more than half, and what an engine leaves is just enough for a trainer.
    """
    rollout, workers = cfg.rollout, workers_text(cfg)
    gpus, share = rollout.num_gpus, rollout.gpu_memory_utilization
    if gpus >= 1:
        return f"is for an engine on its trainer's GPU, rollout.num_gpus={gpus:g}: lower it below 1"
    if rollout.num_actors != cfg.train.num_workers:
        return (
            f"puts one engine beside each trainer, here rollout.num_actors={rollout.num_actors} and "
            f"train.num_workers={workers}: give both the same number"
        )
    if rollout.num_actors > 1 and gpus <= 0.5:
        return (
            f"gives each engine the GPU of one trainer, but two engines of rollout.num_gpus={gpus:g} fit on one, where "
            f"Ray puts them (rollout.num_actors={rollout.num_actors}): raise rollout.num_gpus above 0.5"
        )
    if share and share > gpus:
        return (
            f"shares each GPU, and rollout.gpu_memory_utilization={share:g} takes more of it than the engine's part, "
            f"rollout.num_gpus={gpus:g}: leave it out or lower it"
        )
    return None


def no_engine_works(cfg: RunConfig) -> bool:
    """Whether a run asks nothing of its engines while it trains."""
    return (cfg.supervision.rule != "online" or learner_labels(cfg)) and not cfg.eval.every


def _release(cfg: RunConfig) -> str | None:
    if cfg.rollout.release and not no_engine_works(cfg):
        return (
            "rollout.release=true ends the engines while the policy trains, and they have work then (online labels, "
            "eval.every): leave it out, or set rollout.engine=learner without eval.every"
        )
    if cfg.rollout.release and cfg.rollout.weight_transfer == "ipc":
        return "rollout.release=true leaves nothing to share a GPU with (rollout.weight_transfer=ipc): leave one out"
    return None


def _interim(cfg: RunConfig) -> str | None:
    every, defaults = cfg.eval.every, type(cfg.eval)()
    if not every:
        if cfg.eval.interim_cases != defaults.interim_cases:
            return f"eval.interim_cases={cfg.eval.interim_cases} has no effect without eval.every: set it"
        if cfg.sweep.scheduler == "asha":
            return "sweep.scheduler=asha decides by scores made while trials train: set eval.every"
        return None
    if not cfg.eval.dev_fraction:
        return f"eval.every={every} scores the dev split, and there is none: set eval.dev_fraction above 0"
    if cfg.supervision.rule == "online" and not learner_labels(cfg) and every % cfg.rollout.sync_every:
        return (
            f"eval.every={every} is no multiple of rollout.sync_every={cfg.rollout.sync_every}, and the engines have "
            "the weights of every such step alone: make it one"
        )
    if engines_rest(cfg):
        return f"eval.every={every} asks engines that rest while the policy trains (ipc at lag 0): leave it out"
    return None


def _asha(cfg: RunConfig) -> str | None:
    if cfg.sweep.scheduler == "all" and cfg.sweep.reduction != type(cfg.sweep)().reduction:
        return f"sweep.reduction={cfg.sweep.reduction:g} has no effect without sweep.scheduler=asha: set it"
    return None


_RULES: tuple[Callable[[RunConfig], str | None], ...] = (
    value_problem,
    _second_policy,
    _serving_engine,
    _tensor_parallel,
    _live_reference,
    _gpu_only,
    _batch_over_workers,
    _elastic,
    _auxiliary_source,
    _task_source,
    _task_keys,
    _sentences,
    _transfer,
    _release,
    _interim,
    _asha,
)
