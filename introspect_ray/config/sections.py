"""The keys of a configuration: pydantic models, frozen; unknown keys are refused.

The string under a field is its documentation, and the only one: `--help SECTION` and docs/config.md are made from it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from introspect_ray.config import compatibility
from introspect_ray.config.evaluation import EvalConfig
from introspect_ray.config.judges import JudgeConfig
from introspect_ray.config.sweep import SweepConfig
from introspect_ray.config.task import TaskConfig
from introspect_ray.config.values import Checkpointing


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class SupervisionConfig(_Section):
    """What the explanation labels are made from."""

    rule: Literal["fixed", "online", "mixed"] = "fixed"
    """fixed: M0's explanations; online: rebuilt from the current policy; mixed: M0's and a second policy's."""
    agreement: float = Field(1.0, ge=0, le=1)
    """online: ν, the requested share of labels that agree with the current policy's explanation E(M_t)."""
    wrong_label: Literal["content", "any"] = "content"
    """online: what replaces E(M_t) for a share 1 - ν. content: another answer, with *changed* recomputed; any: any
    other label."""
    mixing_ratio: float = Field(0.0, ge=0, le=1)
    """mixed: α, the share of labels taken from `second_policy`."""
    second_policy: str | None = None
    """mixed: the policy that supplies the share α: "organism:second", a folder or a Hub id."""


class RolloutConfig(_Section):
    """The engines that sample behaviours and explanations, and how weights reach them."""

    engine: Literal["vllm", "transformers", "learner"] = "vllm"
    """What labels the cases of online supervision. vllm, transformers: the rollout actors; learner: the training
    workers, by a forward of their own before the update, so that no weights move before the evaluation."""
    serving_engine: Literal["vllm", "transformers"] = "vllm"
    """engine=learner: what the rollout actors run, for M0's labels of held-out cases and the evaluation."""
    num_actors: int = Field(1, ge=1)
    """Number of rollout actors; each runs one engine."""
    group_size: int | None = Field(None, ge=1)
    """Cases that one engine answers together; what is answered together decides the last bits of logprobs. null: a
    step's batch is dealt evenly to the engines that label it, and label sets and evaluations are cut into groups of 64,
    or 256 where engines have GPUs. A number fixes the groups, so that labels do not depend on `num_actors`."""
    sync_every: int = Field(1, ge=1)
    """online: steps between two deliveries of weights to the engines (engine=learner: between two labellings)."""
    weight_transfer: Literal["auto", "object_store", "nccl", "ipc"] = "auto"
    """How weights reach the engines. object_store: Ray's, works anywhere, and the only one for lora's adapters; nccl:
    vLLM's broadcast, for engines with GPUs of their own; ipc: vLLM's CUDA IPC, for engines that share their trainer's
    GPU, one per trainer (num_gpus < 1, and > 0.5 for several), and at lag 0 leave it their memory while it trains;
    auto: nccl where it works, else object_store."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the engines."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest sequence that an engine accepts, in tokens; null: the longest case, rounded up."""
    max_batched_tokens: int = Field(8192, ge=256, le=1 << 20)
    """vllm: most prompt tokens in one forward; a longer prompt is read in chunks. On a GPU the engine sets aside
    activation memory in proportion to it."""
    kv_cache_bytes: int = Field(128 << 20, ge=1 << 20)
    """vllm on a CPU: bytes of the KV cache."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """vllm on a GPU: share of the GPU's memory that the engine may use; null: 0.85, or `num_gpus` where that is below
    1."""
    tensor_parallel_size: int = Field(1, ge=1)
    """vllm: GPUs over which one engine splits the policy."""
    num_cpus: float = Field(1, ge=0)
    """Logical CPUs per rollout actor, for Ray's placement."""
    release: bool = False
    """train, fixed or mixed labels or engine=learner: end the engines while the policy trains, and start them again for
    the evaluation, so that they and the trainers need not have room at once. (In a sweep trials share engines.)"""
    num_gpus: float = Field(0, ge=0)
    """GPUs per rollout actor; below 1 an engine shares one."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads per rollout actor."""
    probe_tolerance: float | None = Field(None, gt=0)
    """Largest difference in nats between the engine's and the trainer's logprobs of the probe for a delivery of weights
    to count as verified (bfloat16: in the root mean square); null: chosen by `dtype`."""
    probe_tokens: int = Field(32, ge=16)
    """Tokens of the vocabulary that the probe of a delivery looks at, others each time, those of the training cases
    first. A delivery costs 1.5 probe_tokens + 16 tokens of a forward, in engine and trainer. online, lag > 0 or
    sync_every > 1: also how many tokens of a step's cases the trainer reads itself to compare with the engines."""

    @property
    def served_by(self) -> Literal["vllm", "transformers"]:
        """What the rollout actors run."""
        return self.serving_engine if self.engine == "learner" else self.engine

    @property
    def bulk_group(self) -> int:
        """Cases that one engine answers together where a whole set is labelled: M0's labels, an evaluation."""
        return self.group_size or (256 if self.num_gpus else 64)

    @property
    def memory_share(self) -> float:
        """Share of a GPU's memory that vLLM takes: 0.85 of a whole GPU, of a shared one what the engine has of it."""
        return self.gpu_memory_utilization or (self.num_gpus if 0 < self.num_gpus < 1 else 0.85)


class TrainConfig(_Section):
    """The training workers."""

    num_workers: int | tuple[int, int] = 1
    """Number of training workers (FSDP2 ranks). [min, max]: elastic, as many as the cluster has room for. When one goes
    or nodes come, training goes on with fewer or more, from a checkpoint; cases and labels of a step stay the same,
    sums over the batch round differently."""
    use_gpu: bool = False
    """Whether each training worker has a GPU."""
    num_cpus: float = Field(1, ge=0)
    """Logical CPUs per training worker, for Ray's placement."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads per training worker."""
    token_budget: int = Field(2048, ge=1)
    """Most tokens in one forward of packed cases; a longer case gets a forward of its own."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm to which gradients are clipped."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; master weights and optimizer state stay float32."""
    activation_checkpointing: Checkpointing = "auto"
    """What a step keeps for its backward pass; weights are the same. none: all; elementwise: results of products and of
    attention, for half the memory; layers (or true): their inputs, for a third more arithmetic; auto: of more than 256
    MiB on a CPU elementwise, else none, and layers where that does not fit."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """sdpa: a dense mask; flex: FlexAttention with a block mask, compiled, GPU only; auto: flex on a GPU, else sdpa."""
    offload: bool = False
    """GPU: keep weights, gradients and AdamW's state in host memory between uses (16 bytes per parameter) and update
    on the CPU."""
    reference: Literal["cache", "live"] = "cache"
    """Where M0's distribution for the KL comes from. cache: hidden states kept on disk; live: a forward with the
    adapters off (method=lora)."""
    checkpoint_every: int | None = Field(None, ge=0)
    """Steps between checkpoints, the most that a dying node costs; 0: none; null: 50 on a cluster (ray_address,
    RAY_ADDRESS or wait_for_nodes), else none."""
    max_failures: int = Field(3, ge=0)
    """Failures in a row without progress before the run stops; progress is a later checkpoint or, for a group of
    cases, an answer. Until then the run goes on from its last checkpoint, or from step 0. 0 and 1 stop at the first
    failure. With wait_for_nodes a node that is lost is no failure."""

    @field_validator("num_workers", mode="before")
    @classmethod
    def _workers(cls, value: object) -> int | tuple[int, int]:
        return compatibility.workers(value)

    @property
    def elastic(self) -> bool:
        """Whether the number of workers follows the cluster."""
        return isinstance(self.num_workers, tuple)

    @property
    def min_workers(self) -> int:
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers


class AuxiliaryConfig(_Section):
    """Behaviour-only data that is trained on beside the explanations (paper eq. 5)."""

    path: str | None = None
    """A file of chats ({messages}, WildChat's {conversation}, ShareGPT's {conversations}, or {prompt, chosen}) or of
    {text}: .jsonl, .json, .csv, .parquet, or a .txt file; null: none, or `hub_id`."""
    hub_id: str | None = None
    """Data set of the same columns on the Hugging Face Hub; "owner/name:PATTERN" takes the files of that pattern alone,
    e.g. HuggingFaceFW/fineweb:sample/10BT/000_00000.parquet."""
    tokens: Literal["assistant", "all"] = "assistant"
    """Which tokens of a chat are trained on; of plain text all are."""
    weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of their mean cross-entropy per token in the loss."""
    batch_size: int = Field(8, ge=1, le=1_000_000)
    """Sequences per step, over all workers; which ones follows from `seed` and the step."""
    max_tokens: int = Field(512, ge=2)
    """Longest sequence in tokens: chats are cut there, plain text is cut into pieces of it."""


class AlarmConfig(_Section):
    """Bounds beyond which a run stops."""

    engine_gap: float | None = Field(0.01, gt=0)
    """Largest difference in nats between the trainer's and the engine's label logprobs on the same case and weights
    (online: rank 0's cases of a step or, of labels made with earlier weights, a sample of them; before training: M0's
    on a sample, in bfloat16 as far off as a probe may be); null: off."""
    agreement: float | None = Field(1e-9, gt=0, lt=0.5)
    """Stop if the agreement of all labels so far has less than this probability at ν (per side and step); null: off."""
    off_format: float | None = Field(None, ge=0, le=1)
    """Largest share of a step's answers whose likeliest token is no allowed label, or, of free text, on which the judge
    gave no verdict (online); null: off."""
    collapse: Literal["warn", "stop", "off"] = "warn"
    """If M0 gives nearly always the same answer or (un)changed (paper §B.2): warn, refuse to train, or say nothing."""


class TrackingConfig(_Section):
    """Experiment tracking."""

    backend: Literal["mlflow", "jsonl", "none"] = "mlflow"
    """mlflow: MLflow and metrics.jsonl; jsonl: files in the output folder; none: metrics.jsonl alone."""
    uri: str | None = None
    """MLflow tracking URI; null: an SQLite store in the output folder."""
    experiment: str = "introspect-ray"
    """Name of the MLflow experiment."""
    patience_s: float = Field(30.0, ge=0)
    """Seconds that the end of a run waits for an MLflow that takes nothing (ten times as long for a slow one). What it
    was not told then waits in tracking/ of the output folder, for `introspect-ray track --send RUN`."""


class RunConfig(_Section):
    """One training run. Dotted names of these fields are the names of overrides."""

    output_dir: str = "runs/train"
    """Folder or s3:// address of the results."""
    policy: str = "organism"
    """M0, the policy to train: "organism" (bundled), a Hugging Face folder or Hub id, or a .gguf file."""
    reference_policy: str | None = None
    """The policy that the KL keeps to, that fixed labels explain and that Orig is scored against, if it is not the one
    that training starts from: M[B(M_reg), E(M_reg)] of paper fig. 10b. null: `policy`."""
    task: TaskConfig = TaskConfig()
    kl_weight: float = Field(1.0, ge=0, le=1e6)
    """λ of paper eq. 2, the weight of KL(M0 ‖ M) on the behaviour."""
    loss_normalisation: Literal["token", "sequence"] = "token"
    """token: mean cross-entropy per explanation token, mean KL per response token. sequence: eq. 2 read literally, the
    mean over cases of the summed -log p(e | q), and over prompts of the summed KL; with explanations of n tokens the
    same λ weighs n times less."""
    learning_rate: float = Field(1e-5, gt=0)
    """AdamW's learning rate; it is constant."""
    steps: int = Field(100, ge=0, le=100_000_000)
    """Gradient steps."""
    batch_size: int = Field(8, ge=1, le=1_000_000)
    """Cases per step, over all workers."""
    seed: int = Field(0, ge=0)
    """Seed of the run: the order of cases, wrong and mixed labels, LoRA's initial weights."""
    lag: int = Field(0, ge=0)
    """Step t trains on labels of weight version t - lag exactly."""
    deterministic: bool = False
    """Kernels whose results do not depend on what is computed beside them: torch's deterministic algorithms in the
    training workers and, where the engines have NVIDIA GPUs of compute capability 9.0 or later, vLLM's batch-invariant
    mode (beta). Where the hardware has no such mode, a warning says so and the run goes on. Slower."""
    method: Literal["full", "lora"] = "full"
    """Train all weights, or LoRA adapters on all linear layers."""
    lora_rank: int = Field(32, ge=1, le=65_536)
    """lora: the rank r; its α equals r (paper §D.1)."""
    supervision: SupervisionConfig = SupervisionConfig()
    judge: JudgeConfig = JudgeConfig()
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    alarms: AlarmConfig = AlarmConfig()
    tracking: TrackingConfig = TrackingConfig()
    sweep: SweepConfig = SweepConfig()
    cache_dir: str | None = None
    """Folder or s3:// address of label sets and reference caches, named by content; null: cache/ in output_dir."""
    ray_address: str | None = None
    """Cluster to join; null: the one in RAY_ADDRESS, else a local one of just the size needed."""
    patience_s: float = Field(300.0, ge=0, allow_inf_nan=False)
    """Seconds for which a run asks a store (output_dir, cache_dir) or the Hugging Face Hub again that does not answer,
    with pauses that grow to 15 s, at random by half. Then the attempt has failed (train.max_failures). Checks before a
    run ask for 15 s at most."""
    wait_for_nodes: bool = False
    """On an autoscaling cluster: wait for new nodes, for as long as it takes, instead of refusing a run that does not
    fit yet or giving up one that lost its nodes."""
    stop_within_s: float = Field(30.0, ge=1)
    """Seconds from SIGINT or SIGTERM to the end of the job, after which it is killed: the grace period of whoever sends
    the signal. While policies train, all but the last 10 (or a third) are for the step and a checkpoint to go on from,
    or for an evaluation to end."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        compatibility.check(self)
        return self
