"""Training that survives the death of its parts: it starts again from the newest usable checkpoint.

    each attempt starts at           makes anew                             keeps
    ------------------------------------------------------------------------------------------------------------
    the newest usable checkpoint,    training workers and relabeler         the engines, all of them up and usable,
    or step 0                        (the old one writes nothing more)      and the label table up to that step

`train.max_failures` failed attempts in a row that leave no later checkpoint stop the run. Alarms, wrong deliveries and
bad input stop it at once. `--resume` is the first attempt of a new job.

No failures are: a checkpoint that was written because a node is about to go, a change of the number of elastic workers,
and, with `wait_for_nodes`, nodes that were lost. Then nothing that is waited for has a limit, and all waiting is told.

A job that is asked to end (signals.py) says so on its status board. Whoever trains in it, in this process or in that of
a trial, hears of it with the labels of a step, and ends with a checkpoint after that step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import TrainingFailedError, WorkerGroupError

from introspect_ray.actors.trainer import Trained, WorkerSpec, train_worker
from introspect_ray.errors import AlarmError, Halted, Interrupted, Outage, RepeatedFailure, UserError, one_line
from introspect_ray.records import Wait
from introspect_ray.runs.elastic import engines_counted
from introspect_ray.runs.lent_group import ray_trainer
from introspect_ray.runs.placement import worker_resources
from introspect_ray.runs.progress import polling
from introspect_ray.runs.waiting import bundle, of_actor, watched
from introspect_ray.storage import open_store
from introspect_ray.storage.checkpoints import newest_usable, step_of

_LOST_S = 20.0  # for Ray to find out that a node is gone: five missed health checks
_STOP_S = 10.0  # for a relabeler to confirm that it has stopped, and for the status board to answer


def decide(failures: int, before: int, now: int, limit: int, *, counts: bool = True) -> tuple[int, bool]:
    """After an attempt that did not finish: (failures in a row without progress, whether to go on).

    failures: in a row before this attempt. before, now: steps of the checkpoints at its start and at its end. counts:
    whether it was a failure.
    """
    if now > before:
        failures = 0
    return (failures + 1, failures + 1 < limit) if counts else (failures, True)


def train_with_recovery(spec: WorkerSpec, start_relabeler: Callable[[], Any]) -> tuple[dict[str, Any], Trained]:
    """Train to the end. Returns what the relabeler and rank 0 say about the run.

    spec: of the run, without relabeler and checkpoint: each attempt has its own. Raises RepeatedFailure, Halted if the
    job was asked to end, and AlarmError and UserError of any part as themselves.
    """
    cfg, failures = spec.cfg, 0
    store = open_store(cfg.output_dir)
    checkpoint = newest_usable(store, spec.identity, _warn)
    if checkpoint:
        print(f"resume   from step {step_of(checkpoint)}", flush=True)
    while True:
        relabeler, nodes = start_relabeler(), alive_nodes()
        try:
            return _attempt(replace(spec, relabeler=relabeler, checkpoint=checkpoint))
        except (TrainingFailedError, RayActorError, Outage) as error:
            planned = interruption(error)
            what = planned or failed_part(error, spec.pool.engines.names())
        finally:
            _retire(relabeler)
        before, checkpoint = step_of(checkpoint), newest_usable(store, spec.identity, _warn)
        now, where = step_of(checkpoint), _progress(spec.status, spec.run_name)
        if halting(spec.status):
            raise Halted(f"{what} {where}; the newest checkpoint is that of step {now}" if now else f"{what} {where}")
        lost = not planned and cfg.wait_for_nodes and node_lost(nodes)
        counts = not (planned or lost)
        failures, again = decide(failures, before, now, cfg.train.max_failures, counts=counts)
        if not again:
            raise RepeatedFailure(
                f"{what} {where}: {failures} failure(s) in a row without a later checkpoint than that of step {now}. "
                "Remove the cause and go on with --resume, or set a smaller train.checkpoint_every "
                f"({cfg.train.checkpoint_every}; 0: none) or a larger train.max_failures ({cfg.train.max_failures})"
            )
        count = f"{failures} of {cfg.train.max_failures} failures in a row" if counts else "no failure"
        _warn(f"{what}{' with its node' if lost else ''} {where}: going on from step {now} ({count})")


def _attempt(spec: WorkerSpec) -> tuple[dict[str, Any], Trained]:
    """Revive the engines, train from spec.checkpoint to the end, and complete the label table."""
    cfg, asked = spec.cfg, 0.0

    def waits() -> list[Wait]:
        found = [*spec.pool.engines.waits(), *of_actor(spec.relabeler.waits.remote, [])]
        if asked and not of_actor(spec.relabeler.entered.remote, 1):
            least, most = cfg.train.min_workers, cfg.train.max_workers
            count = f"{least} to {most}" if cfg.train.elastic else str(most)
            found.append(Wait(f"{count} training worker(s)", bundle(worker_resources(cfg)), asked))
        return found

    with watched(spec.status, spec.run_name, waits), engines_counted(cfg, spec.run_name), _halt_passed_on(spec):
        for note in spec.pool.revive():
            _warn(note)
        asked = time.time()
        trained = _trained(spec)
    return ray.get(spec.relabeler.finish.remote()), trained


def _trained(spec: WorkerSpec) -> Trained:
    """What rank 0 returns, from workers that are kept or from new ones."""
    if spec.group is None or spec.group.kept is None:
        new: Trained = ray_trainer(spec, train_worker, {"spec": spec}).fit().return_value
        return new
    found: Trained | Exception = ray.get(spec.group.kept.train.remote(spec))
    if isinstance(found, Exception):
        raise found
    return found


def halting(status: Any) -> bool:
    """Whether the job was asked to end. status: handle of a StatusBoard."""
    return bool(of_actor(status.halting.remote, False))


@contextmanager
def _halt_passed_on(spec: WorkerSpec) -> Iterator[None]:
    """While the body runs, tell the relabeler when the job is asked to end."""
    told = False

    def look() -> None:
        nonlocal told
        if not told and halting(spec.status):
            told = True
            spec.relabeler.halt.remote()

    with polling(look, f"halt-{spec.run_name}"):
        yield


def alive_nodes() -> set[str]:
    """The ids of the cluster's nodes."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def node_lost(before: set[str]) -> bool:
    """Whether one of the nodes has gone; waits until Ray would know it."""
    until = time.monotonic() + _LOST_S
    while time.monotonic() < until:
        if before - alive_nodes():
            return True
        time.sleep(1.0)
    return False


def interruption(error: Exception) -> str | None:
    """Why an attempt ended on purpose, in one line; None if it failed."""
    planned = next((cause for cause in _causes(error).values() if isinstance(cause, Interrupted)), None)
    return None if planned is None else f"training stopped ({planned})"


def _causes(error: Exception) -> dict[int | None, Exception]:
    """What ended each training worker that ended by an error, by rank; by None what ended the attempt beside them.

    Ray wraps an error of an actor (the relabeler) in one of its own, as its cause.
    """
    if isinstance(error, WorkerGroupError):
        failures: Mapping[Any, Any] = error.worker_failures
    else:
        failures = {None: getattr(error, "controller_failure", error)}
    return {rank: getattr(failure, "cause", None) or failure for rank, failure in failures.items()}


def failed_part(error: Exception, engines: Mapping[str, str]) -> str:
    """One line on what ended an attempt: the part and how it died. Raises an AlarmError, UserError or Halted as itself.

    engines: names by actor id.
    """
    causes = _causes(error)
    named = next((cause for cause in causes.values() if isinstance(cause, AlarmError | UserError | Halted)), None)
    if named:
        raise named from None
    outage = next((cause for cause in causes.values() if isinstance(cause, Outage)), None)
    if outage:
        return f"training failed ({one_line(outage)})"
    # The ranks beside a dead one fail in their collectives: the dead one is the cause.
    for rank, cause in causes.items():
        if isinstance(getattr(cause, "health_check_failure", None), RayActorError):
            return f"training worker {rank} died"
    for rank, cause in causes.items():  # the training function waits for the relabeler and for engines
        if isinstance(cause, RayActorError):
            other = "Ray Train's controller" if rank is None else "the relabeler"
            return f"{engines.get(cause.actor_id, other)} died"
    rank, cause = next(iter(causes.items()))
    lines = [line for line in str(cause).strip().splitlines() if line.strip()] or ["no message"]
    return f"{'training' if rank is None else f'training worker {rank}'} failed ({type(cause).__name__}: {lines[0]})"


def _progress(status: Any, run_name: str) -> str:
    """How far an attempt came, for a message. A board that died with the attempt must not end the run."""
    try:
        row = ray.get(status.latest.remote(), timeout=_STOP_S).get(run_name)
    except (RayActorError, GetTimeoutError):
        return "at a step unknown (the status board is gone)"
    return "before its first step" if row is None else f"after step {row['step']}"


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _retire(relabeler: Any) -> None:
    """End a relabeler such that none of its unfinished work reaches the label table."""
    try:
        for note in ray.get(relabeler.stop.remote(), timeout=_STOP_S):
            _warn(note)
    except (RayActorError, GetTimeoutError):
        pass  # it is dead, or stuck and killed below
    ray.kill(relabeler)
