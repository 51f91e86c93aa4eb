"""Which keys of a configuration have no effect, as other keys stand. They are named before a run, not refused: one file
may serve runs of several kinds. (New keys are refused instead, in compatibility.py.)"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from introspect_ray.config.load import flatten, load_config
from introspect_ray.config.sections import RunConfig
from introspect_ray.errors import UserError


class _Needs(NamedTuple):
    """Keys that are read only where `holds`; `text` says where that is."""

    keys: tuple[str, ...]
    text: str
    holds: Callable[[RunConfig], bool]


_ONLINE = ("supervision.agreement", "supervision.wrong_label", "lag", "rollout.sync_every")
_VLLM = ("rollout.max_batched_tokens", "rollout.tensor_parallel_size")
_NEEDS = (
    _Needs(_ONLINE, "supervision.rule=online", lambda cfg: cfg.supervision.rule == "online"),
    _Needs(
        ("supervision.mixing_ratio", "supervision.second_policy"),
        "supervision.rule=mixed",
        lambda cfg: cfg.supervision.rule == "mixed",
    ),
    _Needs(("lora_rank",), "method=lora", lambda cfg: cfg.method == "lora"),
    _Needs(("rollout.serving_engine",), "rollout.engine=learner", lambda cfg: cfg.rollout.engine == "learner"),
    _Needs(_VLLM, "an engine of vllm", lambda cfg: cfg.rollout.served_by == "vllm"),
    _Needs(
        ("rollout.kv_cache_bytes",),
        "an engine of vllm without a GPU",
        lambda cfg: cfg.rollout.served_by == "vllm" and not cfg.rollout.num_gpus,
    ),
    _Needs(
        ("rollout.gpu_memory_utilization",),
        "an engine of vllm with a GPU",
        lambda cfg: cfg.rollout.served_by == "vllm" and cfg.rollout.num_gpus > 0,
    ),
    _Needs(
        ("tracking.uri", "tracking.experiment"), "tracking.backend=mlflow", lambda cfg: cfg.tracking.backend == "mlflow"
    ),
    _Needs(("task.test_fraction",), "a run without task.test_path", lambda cfg: cfg.task.test_path is None),
    _Needs(
        ("task.wording",),
        "task.name=hint_mmlu or jabberwocky",
        lambda cfg: cfg.task.name in ("hint_mmlu", "jabberwocky"),
    ),
    _Needs(("eval.policy", "eval.against"), "the command evaluate", lambda cfg: False),
)


def without_effect(trials: Iterable[RunConfig]) -> list[str]:
    """A line on each key that is set in a run, or in trials of a sweep, and that none of these reads.

    A value that the task's preset gives is not the user's, and not named.
    """
    found: dict[str, str] = {}
    read: set[str] = set()
    for cfg in trials:
        values, usual = flatten(cfg.model_dump()), _usual(cfg.task.name)
        for need in _NEEDS:
            if need.holds(cfg):
                read.update(need.keys)
                continue
            for key in need.keys:
                if values[key] != usual[key]:
                    found.setdefault(key, f"{key}={_text(values[key])} has no effect: it is for {need.text}")
    return [line for key, line in found.items() if key not in read]


def _usual(task: str) -> dict[str, Any]:
    """The values of a run of this task of which the user says nothing."""
    try:
        return flatten(load_config(None, {"task.name": task}).model_dump())
    except UserError:  # a preset that needs more than the task's name
        return flatten(RunConfig().model_dump())


def _text(value: Any) -> str:
    """As it is written on a command line."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
