"""Where the step loop gets its labels and leaves its metrics and checkpoints: the interfaces, and their Ray side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow.parquet as pq
import ray

from introspect_ray.actors.pool import Asked, RolloutPool, receipts
from introspect_ray.actors.rollout import Serving
from introspect_ray.actors.weight_sync import Expected, probe_case, probe_tolerance, verify
from introspect_ray.actors.weight_transfer import make_transfer
from introspect_ray.config import RunConfig
from introspect_ray.labels.store import labels_to_table
from introspect_ray.records import BehaviorPair, Label, StepLabels, StepMetrics, TokenizedCase
from introspect_ray.schedule import plan_ids
from introspect_ray.storage.checkpoints import CheckpointWriter

if TYPE_CHECKING:
    from introspect_ray.train.learner import Learner

PENDING = "pending.parquet"  # of a checkpoint: labels that were made for later steps


class Supply(Protocol):
    """Where labels come from: engines and relabeler behind one door."""

    def publish(self, learner: Learner, version: int, probe: TokenizedCase) -> None:
        """Start delivering the learner's weights as `version`; labels of it are refused unless the engine that made
        them confirms it, by the probe among others. Collective: every rank calls it."""
        ...

    def request(self, step: int, version: int) -> None:
        """Start making the labels of `step` with `version`. Never waits."""
        ...

    def offer(self, step: int, version: int, pairs: Sequence[BehaviorPair]) -> None:
        """This rank's pairs of `step` (rank, rank + world, ... of its plan), made by the learner with `version`; the
        labels of `step` are made when every rank has offered its own. Never waits."""
        ...

    def fetch(self, step: int) -> StepLabels:
        """This rank's labels of `step`; waits for them. Raises what went wrong while making them."""
        ...

    def pending(self) -> list[Label]:
        """All labels requested so far and not consumed: they belong to a checkpoint."""
        ...


class Conductor(Protocol):
    """What the loop tells the outside: metrics and checkpoints."""

    def report(self, metrics: StepMetrics) -> None: ...

    def checkpoint(self, step: int, learner: Learner, pending: Sequence[Label]) -> None: ...


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a training worker is given; large parts as object references."""

    cfg: RunConfig
    run_name: str
    policy: str  # a name that every node resolves on its own disk
    reference_path: str | None
    train: Any  # ref of a CaseTable, in plan order
    m0: Any  # ref of a Mapping[str, BehaviorPair], the training cases among others
    pool: RolloutPool
    relabeler: Any
    status: Any
    identity: dict[str, Any]  # what a checkpoint must share with this run
    checkpoint: str | None  # to go on from, checked by the driver; None: start at step 0


class RaySupply:
    """The loop's Supply over actors. Only rank 0 requests; every rank publishes, offers and fetches."""

    def __init__(self, spec: WorkerSpec, case_ids: Sequence[str], rank: int) -> None:
        self._spec, self._ids, self._rank = spec, case_ids, rank
        self._transfer = make_transfer(spec.cfg, spec.pool, rank)
        self._latest: Serving | None = None  # its weights live in the object store as long as a request names them
        self._receipts: list[Any] = []  # futures, one an engine

    def publish(self, learner: Learner, version: int, probe: TokenizedCase) -> None:
        sent = self._transfer.send(learner, version, probe_case(probe))
        self._latest = Serving(version, sent.expected, None if sent.stored is None else [sent.stored])
        self._receipts = sent.receipts

    def delivered(self) -> Expected | None:
        """What the receipts of the latest version must say, once those that came are checked (see `receipts`)."""
        expected = self._latest.expected if self._latest else None
        if expected:
            verify(expected, asyncio.run(receipts(self._receipts)), probe_tolerance(self._spec.cfg))
        return expected

    def request(self, step: int, version: int) -> None:
        groups: list[Asked] = []
        online = self._spec.cfg.supervision.rule == "online"
        if online and self._latest:
            groups = self._spec.pool.label(plan_ids(self._spec.cfg, self._ids, step), self._latest, first=step)
        serving, futures = (self._latest, self._receipts) if online else (None, [])
        self._spec.relabeler.relabel.remote(step, version, serving, futures, groups)

    def offer(self, step: int, version: int, pairs: Sequence[BehaviorPair]) -> None:
        self._spec.relabeler.offer.remote(step, version, self._rank, pairs)

    def fetch(self, step: int) -> StepLabels:
        return ray.get(self._spec.relabeler.fetch.remote(step, self._rank))

    def pending(self) -> list[Label]:
        return ray.get(self._spec.relabeler.pending.remote())

    def restore(self, step: int, labels: Sequence[Label]) -> list[int]:
        return ray.get(self._spec.relabeler.restore.remote(step, list(labels)))


class RayConductor:
    """Metrics to the status board, checkpoints to the output folder."""

    def __init__(self, spec: WorkerSpec, rank: int, world: int) -> None:
        self._spec, self._rank, self._world = spec, rank, world
        self._writer = CheckpointWriter(spec.cfg.output_dir, spec.identity, rank, world, spec.checkpoint)

    def report(self, metrics: StepMetrics) -> None:
        self._spec.status.post.remote(self._spec.run_name, metrics)

    def checkpoint(self, step: int, learner: Learner, pending: Sequence[Label]) -> None:
        """Every rank saves its shard; rank 0 adds the labels that were made for later steps."""
        import torch

        def write(folder: str) -> Future[Any]:
            if self._world > 1:
                torch.distributed.barrier()  # all ranks' last checkpoint is stored, and a refused one deleted
            if self._rank == 0:
                pq.write_table(labels_to_table(pending), Path(folder, PENDING))
            return learner.save_checkpoint(folder)

        self._writer.save(step, write)

    def wait(self) -> None:
        """Until this rank's part of the last checkpoint is stored."""
        self._writer.wait()

    def settle(self) -> None:
        """After a collective behind `wait`: delete checkpoints that are not needed any more."""
        self._writer.settle()
