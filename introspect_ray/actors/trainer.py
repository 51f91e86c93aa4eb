"""The Ray Train worker: builds the learner, joins the loop, hands over the trained policy."""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import ray
import ray.train

from introspect_ray.actors.engines import place
from introspect_ray.actors.interim import Interim
from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.supply import PENDING, ROWS, RayConductor, RaySupply
from introspect_ray.actors.trial_group import TrialGroup
from introspect_ray.actors.weight_sync import Expected
from introspect_ray.cases.auxiliary_table import AuxiliaryTable
from introspect_ray.cases.probes import Probe, ProbePlan
from introspect_ray.cases.table import CaseTable
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import learner_labels, weight_transfer
from introspect_ray.engines.determinism import Shortfalls, use_deterministic_algorithms
from introspect_ray.errors import UserError
from introspect_ray.heavy_imports import heavy_imports
from introspect_ray.labels.calibration import Calibration
from introspect_ray.labels.store import labels_from_table
from introspect_ray.loop import no_texts, run
from introspect_ray.policy import local_policy
from introspect_ray.records import AuxiliaryText, BehaviorPair, Label
from introspect_ray.schedule import auxiliary_plan
from introspect_ray.storage import Store, open_store
from introspect_ray.storage.checkpoints import FOLDER, CheckpointWriter, fetch, step_of
from introspect_ray.storage.scratch import scratch_folder

if TYPE_CHECKING:
    from introspect_ray.training.learner import Learner

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSpec:
    """Everything that a training worker is given; large parts as object references."""

    cfg: RunConfig
    run_name: str
    policy: str  # a name that every node resolves on its own disk
    reference_path: str | None  # None: a live reference
    train: Any  # ref of a CaseTable, in plan order
    m0: Any  # ref of a Mapping[case id, BehaviorPair], the training cases among others
    pool: RolloutPool
    status: Any  # handle of a StatusBoard
    calibration: Calibration | None  # by which current answers are read
    identity: dict[str, Any]  # what a checkpoint must share with this run
    group: TrialGroup | None = None  # whose first bundles are the workers'; None: Ray Train makes a group of its own
    auxiliary: Any = None  # ref of an AuxiliaryTable; None: no auxiliary data
    interim: Interim | None = None  # what is scored while it trains; None: nothing
    relabeler: Any = None  # handle of a Relabeler; recovery starts one each time it starts training
    checkpoint: str | None = None  # to go on from, already checked; None: start at step 0


@dataclass(frozen=True)
class Trained:
    """What rank 0 returns: seconds by activity; what every engine's receipt of the final weights must say, on which
    probe; the metrics of all steps of the run (but for those before a checkpoint of version 0.1).

    notes: what deterministic=true asks for and torch does not have. activations: what steps kept of them, as a line.
    """

    seconds: dict[str, float]
    served: Expected | None
    probe: Probe
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    activations: str = ""


def train_worker(config: dict[str, Any]) -> Trained:
    """What Ray Train calls on every rank."""
    began = time.perf_counter()
    spec: WorkerSpec = config["spec"]
    cfg = spec.cfg
    _check_output(cfg.output_dir)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # Its process may still be starting; the learner is built meanwhile.
    entered = [spec.relabeler.enter.remote(world)] if rank == 0 else []
    if weight_transfer(cfg) == "ipc":
        check_shared_gpu(place(), spec.pool.engines.places(), rank)
    train: CaseTable = ray.get(spec.train)
    m0: Mapping[str, BehaviorPair] = ray.get(spec.m0)
    lacking = None
    if cfg.deterministic:
        use_deterministic_algorithms()
        lacking = Shortfalls()
    learner = _learner(spec, train, rank, world)
    probes = ProbePlan(train, train.used_tokens(learner.vocabulary), cfg.rollout.probe_tokens, cfg.seed)
    ray.get(entered)
    supply = RaySupply(cfg, train.case_ids, spec.pool, spec.relabeler, rank, probes, spec.interim)
    writer = CheckpointWriter(cfg.output_dir, spec.identity, rank, world, spec.checkpoint)
    conductor = RayConductor(spec.status, spec.run_name, writer, rank, world, watched=_watched())
    start, restored, conductor.rows = _resume(spec, learner, supply, rank)
    built = time.perf_counter()
    first = 0.0
    if spec.pool.actors and (cfg.supervision.rule != "online" or learner_labels(cfg)):  # no step delivers weights
        first = _deliver(supply, learner, start, rank)[1]  # a delivery that cannot work fails now, not last
    texts = no_texts if spec.auxiliary is None else auxiliary_share(cfg, ray.get(spec.auxiliary), rank, world)
    kept = frozenset(restored)
    ranks: Any = {"rank": rank, "world": world}
    seconds = run(cfg, learner, supply, conductor, m0, train, **ranks, start=start, restored=kept, auxiliary=texts)
    conductor.wait()
    finished = time.perf_counter()
    _export(cfg, learner, rank)
    conductor.settle()
    setup = {"learner": built - began, "export": time.perf_counter() - finished}
    served, last = _deliver(supply, learner, cfg.steps, rank, last=True)  # after the export, which saves the policy
    seconds["sync"] += first + last
    notes = tuple(lacking.lines) if lacking else ()
    return Trained({**seconds, **setup}, served, supply.probe, conductor.rows, notes, learner.module.activations)


def serve_worker(config: dict[str, Any]) -> None:
    """What Ray Train calls on every rank that is kept for one training after another. desk: handle of a KeptWorkers."""
    desk, first = config["desk"], ray.train.get_context().get_world_rank() == 0
    for number in count():
        spec: WorkerSpec | None = ray.get(desk.next.remote(number))
        if spec is None:
            return
        trained = train_worker({"spec": spec})
        del spec
        gc.collect()  # the learner's tensors may be in cycles
        if first:
            ray.get(desk.done.remote(trained))


def auxiliary_share(
    cfg: RunConfig, table: AuxiliaryTable, rank: int, world: int
) -> Callable[[int], Sequence[AuxiliaryText]]:
    """step -> the auxiliary texts of one rank at that step: every world-th one of the step's plan, from `rank` on."""

    def share(step: int) -> Sequence[AuxiliaryText]:
        plan = auxiliary_plan(cfg.seed, step, len(table), cfg.auxiliary.batch_size)
        return table.rows(plan[rank::world])

    return share


def _watched() -> bool:
    """Whether Ray Train looks for nodes that are about to go. On a local cluster it is told not to (cluster.py)."""
    return os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"


def check_shared_gpu(mine: tuple[str, list[str]], engines: Sequence[tuple[str, list[str]]], rank: int) -> None:
    """Raise UserError for a training worker that has no engine on its GPU (rollout.weight_transfer=ipc).

    mine, engines: node and GPUs, by their ids (`engines.place`).
    """
    if mine not in engines:
        raise UserError(
            f"rollout.weight_transfer=ipc: training worker {rank} is on GPU {','.join(mine[1]) or 'none'} of node "
            f"{mine[0][:8]}, where no engine is (they are on {', '.join(_where(one) for one in engines)}): leave parts "
            "of GPUs on these nodes to this run alone, or set rollout.weight_transfer=nccl with whole GPUs"
        )


def _where(place: tuple[str, list[str]]) -> str:
    return f"{','.join(place[1])} of {place[0][:8]}"


def _check_output(output_dir: str) -> None:
    """Refuse a node that joined after the driver's check (cluster.check_folders) and does not see the output folder."""
    store = open_store(output_dir)
    if store.local_path() is not None and not store.exists("run.json"):  # which the driver wrote
        raise UserError(
            f"output_dir is {output_dir} on the driver's disk, and node {ray.util.get_node_ip_address()} does not see "
            "it: name an s3:// folder, or one on a file system that all nodes share"
        )


def _deliver(
    supply: RaySupply, learner: Learner, version: int, rank: int, *, last: bool = False
) -> tuple[Expected | None, float]:
    """Publish the learner's weights and, on rank 0, wait for the receipts: (what they must say, seconds)."""
    began = time.perf_counter()
    supply.publish(learner, version, last=last)
    served = supply.delivered() if rank == 0 else None
    return served, time.perf_counter() - began


def _learner(spec: WorkerSpec, train: CaseTable, rank: int, world: int) -> Learner:
    with heavy_imports():  # transformers is imported for the first time when the policy is loaded
        import torch

        from introspect_ray.training.learner import Learner

        torch.set_num_threads(spec.cfg.train.threads)
        learner = Learner(
            spec.cfg,
            local_policy(spec.policy),
            spec.reference_path,
            train.by_id,
            rank=rank,
            world_size=world,
            longest=train.longest_tree_path,
            calibration=spec.calibration,
        )
    if rank == 0:
        _log.info(learner.module.activations)
    return learner


def _resume(
    spec: WorkerSpec, learner: Learner, supply: RaySupply, rank: int
) -> tuple[int, list[int], list[dict[str, Any]]]:
    """Load the checkpoint, if any: (first step, later steps whose labels it kept, metrics of the steps before it)."""
    pending: list[Label] = []
    rows: list[dict[str, Any]] = []
    if spec.checkpoint is not None:
        context = ray.train.get_context()
        place = (context.get_node_rank(), context.get_local_rank(), context.get_world_size())
        with checkpoint_folder(open_store(spec.cfg.output_dir), spec.checkpoint, *place) as folder:
            learner.load_checkpoint(str(folder))
            pending = labels_from_table(pq.read_table(folder / PENDING))
            if rank == 0 and (folder / ROWS).exists():
                rows = [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]
    step = step_of(spec.checkpoint)
    if rank == 0:
        supply.restore(step, pending)
    return step, sorted({label.provenance.step for label in pending}), rows


@contextmanager
def checkpoint_folder(store: Store, name: str, node: int, local_rank: int, world: int) -> Iterator[Path]:
    """A folder where every rank can read the checkpoint `name`: the stored one, or a download, one per node, whose
    content is checked. Collective."""
    import torch

    if (stored := store.local_path(f"{FOLDER}/{name}")) is not None:
        yield stored
        return
    with scratch_folder("checkpoint") as scratch:
        mine = None
        if local_rank == 0:
            fetch(store, name, Path(scratch))
            mine = (node, scratch)
        folders: list[tuple[int, str] | None] = [mine] * world  # (node, folder) of the rank that downloaded, or None
        if world > 1:
            torch.distributed.all_gather_object(folders, mine)
        yield Path(dict(filter(None, folders))[node])
        if world > 1:
            torch.distributed.barrier()  # every rank has read it


def _export(cfg: RunConfig, learner: Learner, rank: int) -> None:
    """The trained policy to <output_dir>/policy in Hugging Face format. Every rank takes part in the gather."""
    with scratch_folder("export") as folder:
        learner.export(folder)
        if rank == 0:
            open_store(cfg.output_dir).upload_dir(folder, "policy")
