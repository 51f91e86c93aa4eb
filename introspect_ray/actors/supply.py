"""Where the step loop gets labels from and sends metrics and checkpoints to: the interfaces and their Ray side."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow.parquet as pq
import ray
import ray.train

from introspect_ray.actors.interim import Asked, Interim
from introspect_ray.actors.metrics import Meters, checkpoint_values, run_name, step_values
from introspect_ray.actors.pool import PendingRequest, RolloutPool, receipts
from introspect_ray.actors.rollout import Serving
from introspect_ray.actors.weight_sync import Expected, verify
from introspect_ray.actors.weight_transfer import make_transfer
from introspect_ray.cases.probes import Probe, ProbePlan
from introspect_ray.config import RunConfig
from introspect_ray.errors import Halted, Interrupted
from introspect_ray.labels.store import labels_to_table
from introspect_ray.records import BehaviorPair, Label, StepLabels, StepMetrics
from introspect_ray.schedule import delivery_number, plan_ids
from introspect_ray.storage.checkpoints import CheckpointWriter, Saved

if TYPE_CHECKING:
    from introspect_ray.training.learner import Learner

PENDING = "pending.parquet"  # in a checkpoint: the labels that were made for later steps
ROWS = "rows.jsonl"  # in a checkpoint: the metrics of all steps before it, since the driver may die before it has them


class Supply(Protocol):
    """Where labels come from: the engines and the relabeler behind one interface."""

    def publish(self, learner: Learner, version: int) -> None:
        """Start delivering the learner's weights as `version`. Labels of it are refused unless their engine has
        confirmed the version by fingerprints and probe. Collective: every rank calls it."""
        ...

    def request(self, step: int, version: int) -> None:
        """Start making the labels of `step` with `version`. Never waits."""
        ...

    def offer(self, step: int, version: int, pairs: Sequence[BehaviorPair]) -> None:
        """Hand over this rank's pairs of `step` (rank, rank + world, ... of its plan), made by the learner with
        `version`. The labels of `step` are made when every rank has offered its pairs. Never waits."""
        ...

    def score(self, step: int, learner: Learner) -> None:
        """Start scoring the learner's weights, those of version `step`, on a few held-out cases. Never waits.
        Collective."""
        ...

    def fetch(self, step: int) -> StepLabels:
        """This rank's labels of `step`; waits for them. Raises the error that kept them from being made."""
        ...

    def pending(self) -> list[Label]:
        """All labels that were requested and not consumed yet: they belong into a checkpoint."""
        ...


class Conductor(Protocol):
    """Where the loop sends metrics and checkpoints."""

    def report(self, metrics: StepMetrics) -> None:
        """Record the metrics of a step. Called on rank 0. Never waits."""
        ...

    def checkpoint(self, step: int, learner: Learner, pending: Sequence[Label]) -> None:
        """Save the state from which training goes on at `step`. Collective. pending: on rank 0, see Supply.pending."""
        ...

    def node_is_going(self) -> bool:
        """Whether the cluster will take a node away on which a rank runs. Collective: the same on every rank."""
        ...

    def leave(self, step: int) -> None:
        """Wait until the checkpoint of `step` is stored, and raise Interrupted. Collective."""
        ...

    def halt(self, step: int) -> None:
        """The same at the end of a job that was asked to end: raise Halted. Collective."""
        ...


class RaySupply:
    """The loop's Supply over actors. Only rank 0 requests; every rank publishes, offers and fetches."""

    def __init__(
        self,
        cfg: RunConfig,
        case_ids: Sequence[str],
        pool: RolloutPool,
        relabeler: Any,
        rank: int,
        probes: ProbePlan,
        interim: Interim | None = None,
    ) -> None:
        """case_ids: of the training cases, in plan order. relabeler: handle of a Relabeler. probes: the same on all
        ranks. interim: what `score` asks."""
        self._cfg, self._ids, self._pool, self._relabeler, self._rank = cfg, case_ids, pool, relabeler, rank
        self._probes, self._interim = probes, interim
        self.probe: Probe = ()  # of the latest version
        self._transfer = make_transfer(cfg, pool, rank)
        self._meters = Meters(run_name(cfg.output_dir), rank)
        self._latest: Serving | None = None  # its weights stay in the object store as long as a request names them
        self._receipts: list[Any] = []  # futures, one per engine

    def publish(self, learner: Learner, version: int, *, last: bool = False) -> None:
        """last: these weights are evaluated, and looked at with a larger probe."""
        number = delivery_number(version, self._cfg)
        self.probe = self._probes.last(number) if last else self._probes.at(number)
        began = time.perf_counter()
        published = self._transfer.send(learner, version, self.probe)
        self._meters.record({"introspect_sync_seconds": time.perf_counter() - began})
        self._latest = Serving(version, published.expected, None if published.stored is None else [published.stored])
        self._receipts = published.receipts

    def delivered(self) -> Expected | None:
        """Wait for the receipts of the latest version and verify those that came (see `receipts`); returns what they
        must say. None off rank 0."""
        expected = self._latest.expected if self._latest else None
        if expected:
            verify(expected, asyncio.run(receipts(self._receipts)))
        return expected

    def request(self, step: int, version: int) -> None:
        groups: list[PendingRequest] = []
        online = self._cfg.supervision.rule == "online"
        if online and self._latest:
            groups = self._pool.label(plan_ids(self._cfg, self._ids, step), self._latest, step)
        serving, futures = (self._latest, self._receipts) if online else (None, [])
        self._relabeler.relabel.remote(step, version, serving, futures, groups)

    def offer(self, step: int, version: int, pairs: Sequence[BehaviorPair]) -> None:
        self._relabeler.offer.remote(step, version, self._rank, pairs)

    def score(self, step: int, learner: Learner) -> None:
        if self._latest is None or self._latest.version != step:  # no step delivers weights
            self.publish(learner, step)
        if self._interim and self._latest and self._latest.expected:
            ids, serving = self._interim.case_ids, self._latest
            requests = self._pool.ask_both(ids, self._interim.max_tokens, serving)
            self._relabeler.score.remote(Asked(step, requests, self._interim))

    def fetch(self, step: int) -> StepLabels:
        labels: StepLabels = ray.get(self._relabeler.fetch.remote(step, self._rank))
        return labels

    def pending(self) -> list[Label]:
        labels: list[Label] = ray.get(self._relabeler.pending.remote())
        return labels

    def restore(self, step: int, labels: Sequence[Label]) -> None:
        """Start or go on at `step` with the labels that a checkpoint kept for later steps."""
        ray.get(self._relabeler.restore.remote(step, list(labels)))


class RayConductor:
    """Metrics to the status board, checkpoints to the output folder."""

    def __init__(
        self, status: Any, run_name: str, writer: CheckpointWriter, rank: int, world: int, *, watched: bool = False
    ) -> None:
        """status: handle of a StatusBoard. watched: whether Ray Train says when a node is about to be taken away."""
        self._status, self._run, self._writer, self._rank, self._world = status, run_name, writer, rank, world
        self._meters = Meters(run_name, rank)
        writer.on_saved = self._saved
        self._watched = watched
        self.rows: list[dict[str, Any]] = []  # on rank 0: the metrics of all steps of the run so far

    def report(self, metrics: StepMetrics) -> None:
        self.rows.append(asdict(metrics))
        self._status.post.remote(self._run, metrics)
        self._meters.record(step_values(metrics))

    def _saved(self, saved: Saved) -> None:
        self._meters.record(checkpoint_values(saved))
        if self._rank == 0:
            self._status.saved.remote(self._run, saved)

    def checkpoint(self, step: int, learner: Learner, pending: Sequence[Label]) -> None:
        """Every rank saves its shard; rank 0 adds the labels that were made for later steps, and the metrics so far."""
        import torch

        def write(folder: str) -> Future[Any]:
            if self._world > 1:
                torch.distributed.barrier()  # every rank has stored its last checkpoint, and a refused one is deleted
            if self._rank == 0:
                pq.write_table(labels_to_table(pending), Path(folder, PENDING))
                Path(folder, ROWS).write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            return learner.save_checkpoint(folder)

        self._writer.save(step, write)

    def node_is_going(self) -> bool:
        """Ray Train's preemption notice. It is a barrier of its workers, some milliseconds a step."""
        return self._watched and ray.train.get_preemption_info() is not None

    def leave(self, step: int) -> None:
        """To go on at once on other nodes loses no step. Ray Train would let these workers go on until their node has
        gone, and whatever they still do would be lost."""
        self._stored()
        raise Interrupted(f"a node is about to go, the checkpoint of step {step} is stored")

    def halt(self, step: int) -> None:
        self._stored()
        raise Halted(f"the checkpoint of step {step} is stored")

    def _stored(self) -> None:
        """Until every rank's part of the last checkpoint is stored."""
        import torch

        self.wait()
        if self._world > 1:
            torch.distributed.barrier()  # Ray ends all workers when the first one raises

    def wait(self) -> None:
        """Until this rank's part of the last checkpoint is stored."""
        self._writer.wait()

    def settle(self) -> None:
        """After a collective that follows `wait`: delete checkpoints that are not needed any more."""
        self._writer.settle()
