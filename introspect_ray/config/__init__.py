"""The configuration tree: pydantic, frozen, unknown keys refused; every field documented once, here.

Layers, later wins: field defaults < preset of the task (presets/<task.name>.yaml) < the job's defaults <
--config FILE < dotted key=value overrides. Everything is validated once, before any heavy import.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from introspect_ray.config.merging import merge, nest, read_yaml
from introspect_ray.errors import UserError

PRESETS = Path(__file__).parent / "presets"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskConfig(_Section):
    name: str = "organism"
    """organism, hint_mmlu, jsonl, or a task of an installed package (entry-point group introspect_ray.tasks)."""
    path: str | None = None
    """Training cases: a local file (hint_mmlu: MMLU rows; jsonl: cases) or, for hint_mmlu, None for the hub."""
    test_path: str | None = None
    """Held-out cases; None splits `path` by `test_fraction`."""
    test_fraction: float = Field(0.25, gt=0, lt=1)
    train_cases: int | None = Field(None, ge=1)
    """At most so many training cases (seeded choice); None takes all."""
    test_cases: int | None = Field(None, ge=1)
    hub_id: str = "cais/mmlu"
    wording: Literal["short", "sentence"] = "short"
    """hint_mmlu: `Hint: A`, or the sentence form "I think the answer is (A) but ..."."""
    seed: int = 0
    """Seeds the task itself: the hinted letter (hint_mmlu), the split, and which cases a limit keeps."""
    answer_prefix: str = ""
    """Text put at the start of the assistant's turn before the label, e.g. "(" (it fixes off-format answers)."""


class SupervisionConfig(_Section):
    rule: Literal["fixed", "online", "mixed"] = "fixed"
    agreement: float = Field(1.0, ge=0, le=1)
    """online: ν, the requested share of labels that agree with E(M_t)."""
    wrong_label: Literal["content", "any"] = "content"
    """online: what replaces E(M_t): another content with *changed* recomputed, or any other label."""
    mixing_ratio: float = Field(0.0, ge=0, le=1)
    """mixed: α, the share of labels taken from `second_policy`."""
    second_policy: str | None = None
    """mixed: the policy whose E supplies the share α: "organism:second", a folder or a hub id."""


class RolloutConfig(_Section):
    engine: Literal["vllm", "transformers", "learner"] = "vllm"
    """Who labels (online): the rollout actors by vLLM or transformers, or "learner", the training workers by a
    forward of their own before the update: no weights move until the evaluation."""
    serving_engine: Literal["vllm", "transformers"] = "vllm"
    """engine=learner only: what the rollout actors run, for M0's labels and the evaluation."""
    num_actors: int = Field(1, ge=1)
    group_size: int = Field(64, ge=1)
    """Cases that go to an engine together; fixed groups keep near-ties independent of the pool's size. A step of
    fewer cases is one group, on one engine: for several engines at lag 0 choose it below batch_size."""
    sync_every: int = Field(1, ge=1)
    """Deliver weights to the engines (engine=learner: label) every so many steps (online supervision)."""
    weight_transfer: Literal["auto", "object_store", "nccl", "ipc"] = "auto"
    """How weights reach the engines: Ray's object store (anywhere), vLLM's NCCL broadcast (engines on GPUs of their
    own) or its CUDA IPC (each engine on a trainer's GPU: rollout.num_gpus < 1, and > 0.5 for several). auto: nccl where
    it can, for full training, else object_store. Adapters (lora) always go through the object store."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: int | None = Field(None, ge=16)
    """Longest sequence an engine accepts; None: the longest case rounded up."""
    max_batched_tokens: int = Field(8192, ge=256)
    """vllm: most prompt tokens in one forward of the engine; a longer prompt is read in chunks of so many. On a GPU the
    activation memory of a forward, set aside at the start, is proportional to it."""
    kv_cache_bytes: int = Field(128 << 20, ge=1 << 20)
    """CPU: size of the engine's KV cache."""
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    tensor_parallel_size: int = Field(1, ge=1)
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    threads: int = Field(1, ge=1)
    probe_tolerance: float | None = Field(None, gt=0)
    """Nats: largest |engine - trainer| logprob on the probe case for a delivery to be verified; None: by dtype."""

    @property
    def served_by(self) -> Literal["vllm", "transformers"]:
        """What the rollout actors run."""
        return self.serving_engine if self.engine == "learner" else self.engine


class TrainConfig(_Section):
    num_workers: int = Field(1, ge=1)
    use_gpu: bool = False
    num_cpus: float = Field(1, ge=0)
    """Logical CPUs a worker."""
    threads: int = Field(1, ge=1)
    token_budget: int = Field(2048, ge=1)
    """Most tokens in one forward of packed trees; longer single cases get a forward of their own."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; master weights and optimizer state stay float32."""
    activation_checkpointing: bool = False
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """Dense mask (sdpa) or FlexAttention with a block mask (compiled; GPU only). auto: flex on a GPU, else sdpa."""
    offload: bool = False
    """GPU: weights, gradients and AdamW state in host memory between uses (16 bytes a parameter), update on the CPU."""
    reference: Literal["cache", "live"] = "cache"
    """M0's distribution: cached hidden states, or a live forward with adapters off (lora only)."""
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0: none."""
    max_failures: int = Field(3, ge=0)
    """Failures in a row without progress (a later checkpoint; for one rollout group: an answer) before the run stops.
    Until then it goes on by itself from the last checkpoint, without one from step 0. 0, 1: stop at the first."""


class EvalConfig(_Section):
    max_new_tokens: int | None = Field(None, ge=1)
    """Tokens of a generated explanation; None: the longest valid explanation."""
    policy: str | None = None
    """jobs/evaluate.py: the trained policy (folder or s3://, or a PEFT adapter of `policy`); None: M0 itself."""
    against: tuple[str, ...] = ()
    """jobs/evaluate.py: further policies B; the explanations are scored against E(B) as well (A→B, paper §2.3)."""


class AlarmConfig(_Section):
    engine_gap: float | None = Field(0.01, gt=0)
    """Nats: largest |trainer - engine| label logprob on the same case and weights (online, lag 0); null: off."""
    agreement: float | None = Field(1e-9, gt=0, lt=0.5)
    """Stop where the agreement of all labels so far had at most this probability (a side, a step) at ν; null: off."""
    off_format: float | None = Field(None, ge=0, le=1)
    """Largest share of a step's answers whose likeliest token is no allowed label (online); null: off."""
    collapse: Literal["warn", "stop", "off"] = "warn"
    """M0 answers nearly always the same, or (un)changed (paper §B.2): say so, refuse to train, or be silent."""


class TrackingConfig(_Section):
    backend: Literal["mlflow", "jsonl", "none"] = "mlflow"
    uri: str | None = None
    """MLflow tracking URI; None: an SQLite store in the output folder."""
    experiment: str = "introspect-ray"


class RunConfig(_Section):
    """One training run. Dotted names of these fields are the override names."""

    output_dir: str = "runs/train"
    policy: str = "organism"
    """M0: "organism" (bundled), a Hugging Face folder or hub id, or a .gguf file."""
    task: TaskConfig = TaskConfig()
    kl_weight: float = Field(1.0, ge=0)
    """λ of paper eq. 2."""
    learning_rate: float = Field(1e-5, gt=0)
    steps: int = Field(100, ge=0)
    batch_size: int = Field(8, ge=1)
    """Cases a step over all workers."""
    seed: int = Field(0, ge=0)
    lag: int = Field(0, ge=0)
    """Step t trains on labels of weight version t - lag exactly."""
    method: Literal["full", "lora"] = "full"
    lora_rank: int = Field(32, ge=1)
    """r; α = r (paper §D.1), on all linear layers."""
    supervision: SupervisionConfig = SupervisionConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    alarms: AlarmConfig = AlarmConfig()
    tracking: TrackingConfig = TrackingConfig()
    cache_dir: str | None = None
    """Label sets and reference caches, addressed by content; None: <output_dir>/cache."""
    ray_address: str | None = None
    """Cluster to join; None: the one in RAY_ADDRESS, else a local one of just the size needed."""
    wait_for_nodes: bool = False
    """On an autoscaling cluster: wait for new nodes instead of refusing a run that has no room yet."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.supervision.rule == "mixed" and not self.supervision.second_policy:
            raise ValueError("supervision.rule=mixed needs supervision.second_policy: folder, hub id, organism:second")
        if self.rollout.engine == "vllm" and self.rollout.serving_engine != "vllm":
            raise ValueError(
                f"rollout.serving_engine={self.rollout.serving_engine} does not go with rollout.engine=vllm: set "
                f"rollout.engine={self.rollout.serving_engine}, or rollout.engine=learner, which it is for"
            )
        if self.rollout.tensor_parallel_size > 1 and self.rollout.num_gpus < self.rollout.tensor_parallel_size:
            raise ValueError(
                f"rollout.tensor_parallel_size={self.rollout.tensor_parallel_size} needs as many GPUs an actor, "
                f"rollout.num_gpus={self.rollout.num_gpus:g}: raise rollout.num_gpus"
            )
        if self.train.reference == "live" and self.method != "lora":
            raise ValueError("train.reference=live needs method=lora (the reference is the policy with adapters off)")
        asked = {"train.attention=flex": self.train.attention == "flex", "train.offload=true": self.train.offload}
        if any(asked.values()) and not self.train.use_gpu:
            setting = next(name for name, on in asked.items() if on)
            raise ValueError(f"{setting} is for a GPU: set train.use_gpu=true, or leave {setting} out")
        if self.batch_size < self.train.num_workers:
            raise ValueError(
                f"batch_size={self.batch_size} leaves some of the workers (train.num_workers={self.train.num_workers}) "
                "without a case: raise batch_size or lower train.num_workers"
            )
        return self


def load_config(file: str | None, overrides: dict[str, Any], defaults: dict[str, Any] | None = None) -> RunConfig:
    """Merge preset, a job's `defaults`, file and overrides (both dotted, values parsed) into a validated RunConfig.

    Raises UserError naming the key, the value and the remedy.
    """
    given = merge(nest(defaults or {}), merge(read_yaml(Path(file)) if file else {}, nest(overrides)))
    name = (
        (given.get("task") or {}).get("name", TaskConfig().name) if isinstance(given.get("task"), dict | None) else None
    )
    preset = PRESETS / f"{name}.yaml"
    try:
        cfg = RunConfig.model_validate(merge(read_yaml(preset), given) if preset.is_file() else given)
    except ValidationError as error:
        raise UserError(_explain(error)) from None
    # Workers have other working folders than the driver.
    folders = {key: value for key in ("output_dir", "cache_dir") if (value := getattr(cfg, key))}
    policies = {
        "policy": cfg.policy,
        "supervision.second_policy": cfg.supervision.second_policy,
        "eval.policy": cfg.eval.policy,
    }
    against = [_absolute_policy(name) for name in cfg.eval.against]
    return override(
        cfg,
        {key: _absolute(value) for key, value in folders.items()}
        | {key: _absolute_policy(value) for key, value in policies.items()}
        | {"eval.against": against},
    )


def _absolute_policy(name: str | None) -> str | None:
    """A path on this machine as an absolute one; bundled policies, hub ids and URIs as they are."""
    if not name or name.partition(":")[0] == RunConfig.model_fields["policy"].default:
        return name
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _absolute(folder: str) -> str:
    """A local folder as an absolute path. Under `ray job submit` the working folder is a copy that Ray deletes
    again, so relative folders are taken from the home folder there."""
    local = folder.removeprefix("file://")
    if "://" in local:
        return folder
    base = Path.home() if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()
    return str(base / Path(local).expanduser())


def file_sets(file: str | None, key: str) -> bool:
    """Whether a config file sets the dotted key."""
    node: Any = read_yaml(Path(file)) if file else {}
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def override(cfg: RunConfig, flat: dict[str, Any]) -> RunConfig:
    """A copy of `cfg` with dotted keys replaced, validated again. Raises UserError."""
    try:
        return RunConfig.model_validate(merge(cfg.model_dump(), nest(flat)))
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def field_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted leaf names, e.g. "kl_weight", "supervision.agreement"."""
    names: list[str] = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += field_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, field_names(), n=1)
        remedy = f": did you mean {close[0]!r}?" if close else "; --dry-run prints them all"
        return f"unknown config key {key!r}{remedy}{more}"
    message = first["msg"].removeprefix("Value error, ")
    return f"config key {key!r}: {message}, got {first['input']!r}{more}" if key else f"config: {message}{more}"
