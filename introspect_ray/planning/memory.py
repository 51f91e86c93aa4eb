"""Bytes per GPU of a training worker (FSDP2, full shard) and of an engine (weights and KV cache).

Counts what the code keeps (sharding.py, learner.py, engines/vllm_engine.py); kernels' own workspaces are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError
from introspect_ray.planning.hardware import Assumptions
from introspect_ray.planning.model_shape import ModelShape
from introspect_ray.planning.work import CaseWork

_CHUNK = 1 << 26  # chunked_loss.py: logits that exist at a time on a GPU
WIDTH = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class TrainerMemory:
    """Bytes of one training GPU by kind. The peak is in the first backward after the forward. Under train.offload
    masters, gradients and Adam are 0 here and in the worker's host memory instead (see kept_bytes)."""

    masters: float  # float32 weights, sharded; a frozen LoRA base in the compute type
    gradients: float  # float32, sharded
    adam: float  # two float32 moments, sharded
    gathered: float  # compute-type copies: the root through the step, two layers; gradients of the root and of a layer
    reference: float  # M0's output head, one copy a GPU
    activations: float  # kept for the backward of the largest micro-batch
    logits: float  # a chunk of rows x vocabulary, with their float32 copies

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def kept_bytes(shape: ModelShape, cfg: RunConfig, workers: int) -> tuple[float, float, float]:
    """(masters, gradients, Adam's moments) of one of `workers` training workers, on its GPU or its host."""
    full = cfg.method == "full"
    trained = shape.parameters if full else shape.lora_parameters(cfg.lora_rank)
    base = 0 if full else WIDTH[cfg.train.dtype] * shape.parameters
    return (4 * trained + base) / workers, 4 * trained / workers, 8 * trained / workers


def trainer_memory(shape: ModelShape, work: CaseWork, cfg: RunConfig, workers: int) -> TrainerMemory:
    """Memory of one of `workers` training GPUs.

    A micro-batch holds up to the token budget (a longer tree alone: itself), or all of a rank's cases, each as long as
    the longest. Gradients of gathered weights come with the float32 copy in which they are reduced.
    """
    width = WIDTH[cfg.train.dtype]
    masters, gradients, adam = (0.0, 0.0, 0.0) if cfg.train.offload else kept_bytes(shape, cfg, workers)
    share = -(-cfg.batch_size // workers)
    trees = min(share, max(1, int(cfg.train.token_budget // work.tree)))
    tokens = min(micro_batch(work, cfg), share * work.longest_tree)
    copies = width * (shape.root + 2 * shape.layer)
    unsharded = (width + 4) * (shape.root + shape.layer) if cfg.method == "full" else 0
    return TrainerMemory(
        masters=masters,
        gradients=gradients,
        adam=adam,
        gathered=copies + unsharded,
        reference=WIDTH[cfg.train.dtype] * shape.head if cfg.train.reference == "cache" else 0,
        activations=activation_bytes(shape, tokens, width, cfg.train.activation_checkpointing),
        logits=logit_bytes(shape, work, trees, width),
    )


def micro_batch(work: CaseWork, cfg: RunConfig) -> int:
    """Most tokens of one forward over packed trees."""
    return max(cfg.train.token_budget, work.longest_tree)


def reference_bytes(shape: ModelShape, work: CaseWork, cfg: RunConfig) -> tuple[float, float]:
    """(weights, activations) of the task that computes M0's reference: the whole policy on one GPU, with what one
    layer holds in a forward of full batches. Zeros for a live reference."""
    if cfg.train.reference != "cache":
        return 0.0, 0.0
    width = WIDTH[cfg.train.dtype]
    return width * shape.parameters, layer_activation_bytes(shape, width) * micro_batch(work, cfg)


def check_reference(shape: ModelShape, work: CaseWork, cfg: RunConfig, a: Assumptions) -> None:
    """Raises UserError where M0's reference does not fit on the one GPU that computes it."""
    weights, activations = reference_bytes(shape, work, cfg)
    if weights + activations > 1e9 * a.memory_gb:
        smaller = " or a smaller train.token_budget" if weights < 1e9 * a.memory_gb else ""
        raise UserError(
            f"train.reference=cache: one GPU of {a.memory_gb:g} GB is to compute M0's reference with all of "
            f"{shape.name}, {weights / 1e9:.1f} GB of weights and {activations / 1e9:.1f} GB of activations: set "
            f"train.reference=live with method=lora{smaller}"
        )


def layer_activation_bytes(shape: ModelShape, width: int) -> float:
    """Bytes a token that one layer keeps for its backward.

    Norms compute in float32: each keeps its input so (4), its normalised value (width). Linear maps keep their
    input once, attention q, k, v and its output (k and v repeated to the query heads), the MLP four inner values.
    """
    norms = 2 * (4 + width) * shape.hidden + (4 + width) * shape.qk_norm * (shape.query + shape.key)
    linear_inputs = 2 * width * shape.hidden
    attention = 4 * width * shape.query
    return norms + linear_inputs + attention + 4 * width * shape.intermediate


def activation_bytes(shape: ModelShape, tokens: float, width: int, checkpointing: bool) -> float:
    """Bytes kept over a forward of `tokens` tokens. Checkpointing keeps each layer's input, and one layer's inside
    while it is computed again."""
    inside = layer_activation_bytes(shape, width) * tokens
    inputs = shape.layers * width * shape.hidden * tokens
    return inputs + inside if checkpointing else shape.layers * inside


def logit_bytes(shape: ModelShape, work: CaseWork, trees: int, width: int) -> float:
    """Bytes of the logits of the first chunk of `trees` trees: behaviour rows, and target rows if there is room.

    A row: logits, float32 copy, log-softmax, gradients of both; a behaviour row also M0's float32 logprobs and the
    KL's own product. Deciding rows have a chunk of their own, of logits only.
    """
    room = max(1, _CHUNK // shape.vocab)
    behaviour = min(2 * trees, room)
    targets = min(work.targets * trees, room - behaviour)
    row = 2 * width + 3 * 4
    return (behaviour * (row + 2 * 4) + targets * row) * shape.vocab


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one GPU of an engine with tensor parallelism."""

    weights: float
    workspace: float  # of a prefill of 8,192 tokens and the logits of 256 sequences
    kv_needed: float  # keys and values of the longest sequence, or of all that run at once
    kv_room: float  # what rollout.gpu_memory_utilization leaves

    @property
    def total(self) -> float:
        return self.weights + self.workspace + self.kv_room


def engine_memory(shape: ModelShape, work: CaseWork, cfg: RunConfig, a: Assumptions, tp: int) -> EngineMemory:
    """Memory of one of `tp` GPUs that serve a policy. Key-value heads are repeated where tp exceeds them."""
    width = WIDTH[cfg.rollout.dtype]
    weights = width * (shape.parameters + (shape.head if shape.tied and tp > 1 else 0)) / tp
    inner = 4 * shape.hidden + (2 * shape.intermediate + 2 * shape.query) / tp
    workspace = width * inner * cfg.rollout.max_batched_tokens + a.kv_sequences * shape.vocab * (width + 8)
    token = shape.kv_bytes(width) / min(tp, shape.key // shape.head_dim)
    sequences = min(a.kv_sequences, 2 * min(cfg.rollout.group_size, cfg.batch_size))
    needed = token * max(work.longest, sequences * max(work.prompt, work.question + work.targets))
    room = 1e9 * a.memory_gb * cfg.rollout.gpu_memory_utilization - weights - workspace
    return EngineMemory(weights, workspace, needed, max(0.0, room))


def trainer_fits(memory: TrainerMemory, a: Assumptions) -> bool:
    return memory.total <= 1e9 * a.memory_gb


def engine_fits(memory: EngineMemory) -> bool:
    """Whether the KV cache holds all that runs at once (with less, vLLM lets sequences wait)."""
    return memory.kv_room >= memory.kv_needed
