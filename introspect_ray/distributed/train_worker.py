"""The Ray Train worker: builds the learner, joins the loop, hands over the trained policy."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import ray
import ray.train

from introspect_ray.config import RunConfig
from introspect_ray.distributed.rollout_pool import RolloutPool
from introspect_ray.distributed.weight_sync import probe_case, verify
from introspect_ray.distributed.weight_transfer import Sent, make_transfer
from introspect_ray.label_store import labels_from_table, labels_to_table
from introspect_ray.loop import StepLabels, run
from introspect_ray.preflight import local_policy
from introspect_ray.records import BehaviorPair, Label, StepMetrics, TokenizedCase
from introspect_ray.storage import open_store
from introspect_ray.supervision import plan_ids

if TYPE_CHECKING:
    from introspect_ray.learner import Learner


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a training worker is given; large parts as object references."""

    cfg: RunConfig
    run_name: str
    policy: str  # a name that every node resolves on its own disk
    reference_path: str | None
    train: Any  # ref of list[TokenizedCase], in plan order
    m0: Any  # ref of dict[str, BehaviorPair] of the training cases
    pool: RolloutPool
    relabeler: Any
    status: Any


class RaySupply:
    """The loop's Supply over actors. Only rank 0 requests; every rank publishes and fetches."""

    def __init__(self, spec: WorkerSpec, case_ids: Sequence[str], rank: int) -> None:
        self._spec, self._ids, self._rank = spec, case_ids, rank
        self._transfer = make_transfer(spec.cfg, spec.pool, rank)
        self._sent = Sent(None, [])  # of the latest version

    def publish(self, learner: Learner, version: int, probe: TokenizedCase) -> None:
        self._sent = self._transfer.send(learner, version, probe)

    def deliveries(self) -> list[Any]:
        """Receipts of the latest version, after they are checked."""
        receipts = ray.get(self._sent.receipts)
        verify(self._sent.expected, receipts, self._spec.cfg.rollout.probe_tolerance)
        return receipts

    def request(self, step: int, version: int) -> None:
        online = self._spec.cfg.supervision.rule == "online"
        sent = self._sent if online else Sent(None, [])
        ids = plan_ids(self._spec.cfg, self._ids, step)
        groups = self._spec.pool.label(ids, version, first=step) if online else []
        self._spec.relabeler.relabel.remote(step, version, sent.expected, sent.receipts, groups)

    def fetch(self, step: int) -> StepLabels:
        return ray.get(self._spec.relabeler.fetch.remote(step, self._rank))

    def pending(self) -> list[Label]:
        return ray.get(self._spec.relabeler.pending.remote())

    def restore(self, step: int, labels: Sequence[Label]) -> list[int]:
        return ray.get(self._spec.relabeler.restore.remote(step, list(labels)))


class RayConductor:
    """Metrics to the status board, checkpoints to Ray Train."""

    def __init__(self, spec: WorkerSpec, rank: int) -> None:
        self._spec, self._rank = spec, rank

    def report(self, metrics: StepMetrics) -> None:
        self._spec.status.post.remote(self._spec.run_name, metrics)

    def checkpoint(self, step: int, learner: Learner, pending: Sequence[Label]) -> None:
        """Every rank saves its shard into a folder of its own; Ray Train merges them into one checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            learner.save_checkpoint(folder)
            if self._rank == 0:
                pq.write_table(labels_to_table(pending), Path(folder, "pending.parquet"))
                Path(folder, "step.json").write_text(json.dumps({"step": step}))
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def train_worker(config: dict[str, Any]) -> dict[str, float]:
    """What Ray Train calls on every rank. Returns seconds by activity."""
    began = time.perf_counter()
    import torch

    from introspect_ray.learner import Learner

    spec: WorkerSpec = config["spec"]
    cfg = spec.cfg
    torch.set_num_threads(cfg.train.threads)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    train: list[TokenizedCase] = ray.get(spec.train)
    m0: dict[str, BehaviorPair] = ray.get(spec.m0)
    learner = Learner(
        cfg,
        local_policy(spec.policy),
        spec.reference_path,
        {case.case_id: case for case in train},
        rank=rank,
        world_size=world,
    )
    supply = RaySupply(spec, [case.case_id for case in train], rank)
    start, restored = _resume(learner, supply, rank, world)
    setup = time.perf_counter() - began
    probe = probe_case(train[0])
    seconds = run(
        cfg, learner, supply, RayConductor(spec, rank), m0, probe, rank=rank, start=start, restored=frozenset(restored)
    )
    synced = time.perf_counter()
    supply.publish(learner, cfg.steps, probe)
    if rank == 0:
        supply.deliveries()
    seconds["sync"] += time.perf_counter() - synced
    _export(cfg, learner, rank)
    return {**seconds, "setup": setup}


def _resume(learner: Learner, supply: RaySupply, rank: int, world: int) -> tuple[int, list[int]]:
    """Where to go on: (first step, later steps whose labels the checkpoint kept); (0, []) without a checkpoint."""
    import torch

    step, pending = 0, []
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            learner.load_checkpoint(folder)
            step = json.loads(Path(folder, "step.json").read_text())["step"]
            pending = labels_from_table(pq.read_table(Path(folder, "pending.parquet")))
    if rank == 0:
        supply.restore(step, pending)
    if world > 1:  # a fetch before the restore would wait for labels that the restore forgets
        torch.distributed.barrier()
    return step, sorted({label.provenance.step for label in pending})


def _export(cfg: RunConfig, learner: Learner, rank: int) -> None:
    """The trained policy to <output_dir>/policy in Hugging Face format. Every rank takes part in the gather."""
    with tempfile.TemporaryDirectory() as folder:
        learner.export(folder)
        if rank == 0:
            open_store(cfg.output_dir).upload_dir(folder, "policy")
