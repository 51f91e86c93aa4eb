"""Bytes per GPU of a training worker (FSDP2, full shard) and of an engine, and of what a run stores.

Counts what the code keeps. Not in it: the workspaces of kernels and the fragmentation of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from introspect_ray.config import RunConfig
from introspect_ray.engines.vllm_engine import MAX_SEQUENCES
from introspect_ray.planning.assumptions import Assumptions
from introspect_ray.planning.model_shape import ModelShape
from introspect_ray.planning.work import CaseSizes, recomputes_layers
from introspect_ray.schedule import step_group
from introspect_ray.training.chunked_loss import CHUNK_ELEMENTS
from introspect_ray.training.reference import SIDES


def width(dtype: str) -> int:
    """Bytes per number."""
    return getattr(torch, dtype).itemsize


@dataclass(frozen=True)
class TrainerMemory:
    """Bytes of one training GPU at its peak, the first backward pass after a forward pass."""

    weights: float  # float32 masters, sharded; a frozen LoRA base in the compute type
    gradients: float  # float32, sharded
    adam: float  # two float32 moments, sharded
    gathered: float  # whole copies: the root and two layers; with full training, gradients of the root and of a layer
    m0_head: float  # M0's output head, one copy per GPU
    activations: float  # kept for the backward pass of the largest micro-batch
    logits: float  # of a chunk of rows, with their float32 copies and gradients, and M0's
    total: float  # with train.offload without weights, gradients and Adam, which are in the worker's host memory


def trainer_memory(shape: ModelShape, case: CaseSizes, cfg: RunConfig, workers: int) -> TrainerMemory:
    """Memory of one of `workers` training GPUs.

    A micro-batch holds the token budget, or all cases of a rank if they are fewer, each as long as the longest.
    """
    compute, trained, full = width(cfg.train.dtype), trained_parameters(shape, cfg), cfg.method == "full"
    frozen = 0 if full else compute * shape.parameters
    share = -(-cfg.batch_size // workers)
    rows = (2 + case.target) * min(share, max(1, cfg.train.token_budget // case.tree))
    tokens = min(micro_batch(case, cfg), share * case.longest_tree)
    inside = layer_activation_bytes(shape, compute) * tokens
    inputs = shape.layers * compute * shape.hidden * tokens
    sharded = (4 * trained + frozen) / workers, 4 * trained / workers, 8 * trained / workers
    rest = (
        compute * (shape.root + 2 * shape.layer) + full * (compute + 4) * (shape.root + shape.layer),
        compute * shape.head if cfg.train.reference == "cache" else 0,
        inputs + inside if recomputes_layers(cfg) else shape.layers * inside,
        (2 * compute + 5 * 4) * min(CHUNK_ELEMENTS["cuda"], rows * shape.vocab),  # five float32 copies
    )
    return TrainerMemory(*sharded, *rest, total=sum(rest) + (0 if cfg.train.offload else sum(sharded)))


def trained_parameters(shape: ModelShape, cfg: RunConfig) -> int:
    return shape.parameters if cfg.method == "full" else shape.lora_parameters(cfg.lora_rank)


def micro_batch(case: CaseSizes, cfg: RunConfig) -> int:
    """Most tokens of one forward pass over packed trees."""
    return max(cfg.train.token_budget, case.longest_tree)


def layer_activation_bytes(shape: ModelShape, compute: int) -> float:
    """Bytes per token that one layer keeps for its backward pass, in a type of `compute` bytes.

    Norms work in float32: each keeps its input so (4 bytes) and its normalised value. Linear maps keep their input,
    attention q, k, v and its output (k and v repeated for all query heads), the gated MLP four inner values.
    """
    norms = (4 + compute) * (2 * shape.hidden + shape.query_key_norms * (shape.query + shape.key))
    return norms + compute * (2 * shape.hidden + 4 * shape.query + 4 * shape.intermediate)


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of one GPU of an engine."""

    weights: float
    workspace: float  # of a prefill of rollout.max_batched_tokens, and the logits of all sequences that run at once
    cache: float  # keys and values of all sequences that run at once; with less, some of them wait
    room: float  # what rollout.gpu_memory_utilization allows

    @property
    def total(self) -> float:
        return self.weights + self.workspace + self.cache

    @property
    def fits(self) -> bool:
        return self.total <= self.room


def engine_memory(shape: ModelShape, case: CaseSizes, cfg: RunConfig, a: Assumptions, gpus: int) -> EngineMemory:
    """Memory of one of `gpus` GPUs that serve a policy by tensor parallelism. Key-value heads are repeated where there
    are fewer of them than GPUs."""
    compute = width(cfg.rollout.dtype)
    weights = compute * (shape.parameters if gpus == 1 else shape.sent_parameters) / gpus  # a split head is not tied
    inner = 4 * shape.hidden + (2 * shape.intermediate + 2 * shape.query) / gpus
    workspace = compute * inner * cfg.rollout.max_batched_tokens + MAX_SEQUENCES * shape.vocab * (compute + 8)
    token = 2 * shape.layers * shape.key * compute / min(gpus, shape.key_heads)
    sequences = min(MAX_SEQUENCES, 2 * min(step_group(cfg), cfg.batch_size))
    cache = token * max(case.longest, sequences * (case.question + case.target))
    return EngineMemory(weights, workspace, cache, 1e9 * a.memory_gb * cfg.rollout.memory_share)


@dataclass(frozen=True)
class RunBytes:
    """Bytes of a run outside its training and sampling."""

    reference_task: float  # GPU memory of the task that computes M0's cached reference
    reference: float  # that cache on disk: M0's hidden states of all training cases, and its output head
    checkpoint: float  # trained weights and Adam's moments in float32; a tied head under a name of its own
    policy: float  # the trained policy or adapter, in the compute type
    update: float  # what one weight update sends to the engines


def run_bytes(shape: ModelShape, case: CaseSizes, cfg: RunConfig) -> RunBytes:
    """The reference task holds the whole policy on one GPU, and one layer's activations of a full micro-batch."""
    compute, trained, cached = width(cfg.train.dtype), trained_parameters(shape, cfg), cfg.train.reference == "cache"
    task = compute * shape.parameters + layer_activation_bytes(shape, compute) * micro_batch(case, cfg)
    return RunBytes(
        reference_task=cached * task,
        reference=cached * compute * (len(SIDES) * case.train_cases * shape.hidden + shape.head),
        checkpoint=3 * 4 * trained + shape.tied * shape.head * (4 if cfg.method == "full" else compute),
        policy=compute * trained,
        update=compute * (shape.sent_parameters if cfg.method == "full" else trained),
    )
