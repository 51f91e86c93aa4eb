"""Seconds of the parts of a step: what the schedule and its simulation are given.

Each part is the largest of what bounds it (arithmetic, memory traffic, links, the host's launches), plus what
cannot overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import learner_labels
from introspect_ray.planning.hardware import Assumptions
from introspect_ray.planning.memory import WIDTH, kept_bytes
from introspect_ray.planning.model_shape import ModelShape
from introspect_ray.planning.work import CaseWork, mean_micro_batches, pair_flops, step_flops, tree_flops

Transfer = Literal["host", "device"]
_ADAM_BYTES = 40  # a trained parameter and step: clipping reads and writes the gradient, Adam reads 16 and writes 12


@dataclass(frozen=True)
class Durations:
    """Seconds. `label` is of one group of `group` cases; a smaller group takes its share of `label_case`."""

    gather: float  # publish, while the trainer waits
    deliver: float  # an engine after that, until it has confirmed the version
    label_fixed: float  # a group, whatever its size
    label_case: float  # one case
    update: float
    label_own: float = 0.0  # rollout.engine=learner: the trainers labelling one step's cases
    rendezvous: bool = False  # publish begins when all engines are free and takes their time too (nccl)

    def label(self, cases: float) -> float:
        """One group of `cases` cases on one engine."""
        return max(self.label_fixed, self.label_case * cases) if cases else 0.0


def durations(
    shape: ModelShape, work: CaseWork, cfg: RunConfig, a: Assumptions, workers: int, tp: int, transfer: Transfer
) -> Durations:
    """All durations of a layout."""
    gather, deliver = sync_seconds(shape, work, cfg, a, workers, tp, transfer)
    fixed, case = label_seconds(shape, work, cfg, a, tp)
    own = label_own_seconds(shape, work, cfg, a, workers) if learner_labels(cfg) else 0.0
    update = update_seconds(shape, work, cfg, a, workers)
    return Durations(gather, deliver, fixed, case, update, own, rendezvous=transfer == "device")


def update_seconds(shape: ModelShape, work: CaseWork, cfg: RunConfig, a: Assumptions, workers: int) -> float:
    """One optimizer step: the micro-batches of the busiest rank, then clipping and Adam on its shard.

    In each micro-batch FSDP2 gathers the weights for the forward and again for the backward and reduces float32
    gradients; it prefetches, so links and arithmetic overlap. A live reference is one forward more. Under train.offload
    the shards come from host memory for all gathers and the gradients go there, clipping and Adam too.
    """
    share = -(-cfg.batch_size // workers)
    rounds = mean_micro_batches(work.tree, share, cfg.train.token_budget)
    width = WIDTH[cfg.train.dtype]
    full = cfg.method == "full"
    trained = shape.parameters if full else shape.lora_parameters(cfg.lora_rank)
    live = cfg.train.reference == "live"
    passes = 3 + cfg.train.activation_checkpointing + live  # forward, again to recompute, backward twice
    arithmetic = step_flops(shape, work, cfg).train * share / cfg.batch_size / (a.peak(cfg.train.dtype) * a.mfu_train)
    traffic = rounds * passes * width * shape.parameters / (1e12 * a.hbm_tb_s)
    launches = rounds * (passes - 1) * shape.layers * a.host_s_per_layer  # backward is one pass of launches
    gathers = 2 + live
    moved = (gathers * width * shape.parameters + 4 * trained) * (workers - 1) / workers
    links = rounds * moved / a.link(workers)
    copied, memory = 0.0, 1e12 * a.hbm_tb_s
    if cfg.train.offload:
        masters, gradients, _ = kept_bytes(shape, cfg, workers)
        copied = rounds * (gathers * masters + gradients) / (1e9 * a.pinned_copy_gb_s)
        memory = 1e9 * a.host_memory_gb_s
    return max(arithmetic, traffic, launches, links, copied) + _ADAM_BYTES * trained / workers / memory


def label_own_seconds(shape: ModelShape, work: CaseWork, cfg: RunConfig, a: Assumptions, workers: int) -> float:
    """The trainers' labelling of one step's cases."""
    return forward_seconds(shape, work, cfg, a, workers, -(-cfg.batch_size // workers))


def forward_seconds(
    shape: ModelShape, work: CaseWork, cfg: RunConfig, a: Assumptions, workers: int, cases: int
) -> float:
    """Forwards of each trainer over `cases` trees of x and x∖C, with one gather of the weights each; bound by what
    bounds a micro-batch of the update."""
    rounds = mean_micro_batches(work.both, cases, cfg.train.token_budget)
    size = WIDTH[cfg.train.dtype] * shape.parameters
    arithmetic = tree_flops(shape, work) * cases / (a.peak(cfg.train.dtype) * a.mfu_train)
    traffic, launches = size / (1e12 * a.hbm_tb_s), shape.layers * a.host_s_per_layer
    links = size * (workers - 1) / workers / a.link(workers)
    copied = kept_bytes(shape, cfg, workers)[0] / (1e9 * a.pinned_copy_gb_s) if cfg.train.offload else 0.0
    return max(arithmetic, rounds * max(traffic, launches, links, copied))


def label_seconds(shape: ModelShape, work: CaseWork, cfg: RunConfig, a: Assumptions, tp: int) -> tuple[float, float]:
    """(least seconds of a group, seconds a case): prefill of the pair on `tp` GPUs, and the host's work on prompts."""
    width = WIDTH[cfg.rollout.dtype]
    weights = width * shape.parameters / tp / (1e12 * a.hbm_tb_s)
    arithmetic = pair_flops(shape, work) / tp / (a.peak(cfg.rollout.dtype) * a.mfu_prefill)
    # two all-reduces a layer, each moving 2 (tp - 1) / tp of the activations
    reduced = 2 * shape.layers * work.rollout_tokens * width * shape.hidden * 2 * (tp - 1) / tp
    return max(weights, shape.layers * a.host_s_per_layer), arithmetic + reduced / a.link(tp) + 2 * a.request_s


def sent_bytes(shape: ModelShape, cfg: RunConfig) -> float:
    """Bytes of one version on its way to an engine (compute type; LoRA: the adapter only)."""
    count = shape.sent_parameters if cfg.method == "full" else shape.lora_parameters(cfg.lora_rank)
    return WIDTH[cfg.train.dtype] * count


def sync_seconds(
    shape: ModelShape, work: CaseWork, cfg: RunConfig, a: Assumptions, workers: int, tp: int, transfer: Transfer
) -> tuple[float, float]:
    """(publish on the trainer, delivery on an engine after it), with one probe case on either side.

    Both gather the float32 masters, under train.offload from host memory, and cast what is whole to the compute type.
    host (weight_transfer=object_store): copy to rank 0's memory, fingerprints, Ray's object store; then the store to
    the engine's node, the copy to its GPU, and the fingerprints again.
    device (nccl), from GPU to GPU: broadcast over the slowest link on the way; publish lasts until the engines have
    written what arrives, both sides hash at memory speed. What is left for a delivery is the probe.
    """
    size = sent_bytes(shape, cfg)
    masters = 4 / WIDTH[cfg.train.dtype] * size
    gather = masters * (workers - 1) / workers / a.link(workers)
    if cfg.train.offload:
        gather += masters / workers / (1e9 * a.pinned_copy_gb_s)
    publish = gather + forward_seconds(shape, work, cfg, a, workers, 1)
    probe = label_seconds(shape, work, cfg, a, tp)[0] + 2 * a.request_s
    if transfer == "host":
        publish += size / 1e9 * (1 / a.host_copy_gb_s + 1 / a.hash_gb_s + 1 / a.store_gb_s)
        return publish, size / 1e9 * (1 / a.store_gb_s + 1 / a.host_copy_gb_s + 1 / a.hash_gb_s) + probe
    # Rank 0 and the workers of all engines are one NCCL group; rank 0 alone sends, from one port where that is far.
    near = workers + cfg.rollout.num_actors * tp <= a.gpus_per_node
    wire = 1e9 * a.link_efficiency * (a.nvlink_gb_s if near else a.ib_gb_s)
    memory = (size + 2 * size / tp) / (1e12 * a.hbm_tb_s)  # hashing, and the engine's shard read and written
    return publish + size / wire + memory, probe
