"""The Ray Train worker: builds the learner, joins the loop, hands over the trained policy."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import ray
import ray.train

from introspect_ray.actors.pool import Asked, RolloutPool, receipts
from introspect_ray.actors.rollout import Serving
from introspect_ray.actors.weight_sync import Expected, probe_case, probe_tolerance, verify
from introspect_ray.actors.weight_transfer import make_transfer
from introspect_ray.cases.table import CaseTable
from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError
from introspect_ray.heavy_imports import heavy_imports
from introspect_ray.labels.rules import plan_ids
from introspect_ray.labels.store import labels_from_table, labels_to_table
from introspect_ray.loop import StepLabels, learner_labels, run
from introspect_ray.records import BehaviorPair, Label, StepMetrics, TokenizedCase
from introspect_ray.runs.preflight import local_policy
from introspect_ray.storage.checkpoints import FOLDER, CheckpointWriter, step_of
from introspect_ray.storage.local import Store, open_store

if TYPE_CHECKING:
    from introspect_ray.train.learner import Learner

_PENDING = "pending.parquet"


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


@dataclass(frozen=True)
class Trained:
    """What rank 0 returns: seconds by activity, and what every engine's receipt of the final weights must say."""

    seconds: dict[str, float]
    served: Expected | None


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
                pq.write_table(labels_to_table(pending), Path(folder, _PENDING))
            return learner.save_checkpoint(folder)

        self._writer.save(step, write)

    def wait(self) -> None:
        """Until this rank's part of the last checkpoint is stored."""
        self._writer.wait()

    def settle(self) -> None:
        """After a collective behind `wait`: delete checkpoints that are not needed any more."""
        self._writer.settle()


def train_worker(config: dict[str, Any]) -> Trained:
    """What Ray Train calls on every rank."""
    began = time.perf_counter()
    spec: WorkerSpec = config["spec"]
    cfg = spec.cfg
    _check_output(cfg.output_dir)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    train: CaseTable = ray.get(spec.train)
    m0: Mapping[str, BehaviorPair] = ray.get(spec.m0)
    learner = _learner(spec, train, rank, world)
    supply = RaySupply(spec, train.case_ids, rank)
    conductor = RayConductor(spec, rank, world)
    start, restored = _resume(spec, learner, supply, rank)
    built = time.perf_counter()
    first = 0.0
    if cfg.supervision.rule != "online" or learner_labels(cfg):  # nothing is delivered on the way
        first = _deliver(supply, learner, start, train[0], rank)[1]  # what would fail at the end fails now
    seconds = run(cfg, learner, supply, conductor, m0, train, rank=rank, start=start, restored=frozenset(restored))
    conductor.wait()
    finished = time.perf_counter()
    _export(cfg, learner, rank)
    conductor.settle()
    setup = {"learner": built - began, "export": time.perf_counter() - finished}
    served, last = _deliver(supply, learner, cfg.steps, train[0], rank)  # after the export: the policy is safe by then
    seconds["sync"] += first + last
    return Trained({**seconds, **setup}, served)


def _check_output(output_dir: str) -> None:
    """Refuse a node that came after the driver's own check (cluster.check_folders) and has another disk."""
    store = open_store(output_dir)
    if store.local_path() is not None and not store.exists("run.json"):  # the driver has written it
        raise UserError(
            f"output_dir is {output_dir} on the driver's disk, and node {ray.util.get_node_ip_address()} does not see "
            "it: name an s3:// folder, or one on a file system that all nodes share"
        )


def _deliver(
    supply: RaySupply, learner: Learner, version: int, probe: TokenizedCase, rank: int
) -> tuple[Expected | None, float]:
    """Publish the learner's weights and, on rank 0, wait for the receipts: (what they must say, seconds)."""
    began = time.perf_counter()
    supply.publish(learner, version, probe)
    served = supply.delivered() if rank == 0 else None
    return served, time.perf_counter() - began


def _learner(spec: WorkerSpec, train: CaseTable, rank: int, world: int) -> Learner:
    with heavy_imports():  # transformers is imported for the first time when the policy is loaded
        import torch

        from introspect_ray.train.learner import Learner

        torch.set_num_threads(spec.cfg.train.threads)
        return Learner(
            spec.cfg,
            local_policy(spec.policy),
            spec.reference_path,
            train.by_id,
            rank=rank,
            world_size=world,
            longest=train.longest_explained,
        )


def _resume(spec: WorkerSpec, learner: Learner, supply: RaySupply, rank: int) -> tuple[int, list[int]]:
    """Where to go on: (first step, later steps whose labels the checkpoint kept); (0, []) without a checkpoint."""
    pending: list[Label] = []
    if spec.checkpoint is not None:
        context = ray.train.get_context()
        place = (context.get_node_rank(), context.get_local_rank(), context.get_world_size())
        with checkpoint_folder(open_store(spec.cfg.output_dir), f"{FOLDER}/{spec.checkpoint}", *place) as folder:
            learner.load_checkpoint(str(folder))
            pending = labels_from_table(pq.read_table(folder / _PENDING))
    step = step_of(spec.checkpoint)
    if rank == 0:
        supply.restore(step, pending)
    return step, sorted({label.provenance.step for label in pending})


@contextmanager
def checkpoint_folder(store: Store, name: str, node: int, local_rank: int, world: int) -> Iterator[Path]:
    """A checkpoint where every rank can read it: in the output folder, or downloaded, once a node. Collective."""
    import torch

    if (stored := store.local_path(name)) is not None:
        yield stored
        return
    with tempfile.TemporaryDirectory(prefix="introspect-ray-checkpoint-") as scratch:
        mine = None
        if local_rank == 0:
            store.download_dir(name, scratch)
            mine = (node, scratch)
        folders: list[tuple[int, str] | None] = [mine] * world
        if world > 1:
            torch.distributed.all_gather_object(folders, mine)
        yield Path(dict(filter(None, folders))[node])
        if world > 1:
            torch.distributed.barrier()  # every rank has read it


def _export(cfg: RunConfig, learner: Learner, rank: int) -> None:
    """The trained policy to <output_dir>/policy in Hugging Face format. Every rank takes part in the gather."""
    with tempfile.TemporaryDirectory() as folder:
        learner.export(folder)
        if rank == 0:
            open_store(cfg.output_dir).upload_dir(folder, "policy")
