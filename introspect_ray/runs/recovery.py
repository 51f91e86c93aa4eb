"""Training that survives the death of its parts: it starts again from the newest usable checkpoint.

    each attempt starts at           makes anew                             keeps
    ------------------------------------------------------------------------------------------------------------
    the newest usable checkpoint,    training workers and relabeler         the engines, all of them up and usable,
    or step 0                        (the old one writes nothing more)      and the label table up to that step

`train.max_failures` failed attempts in a row that leave no later checkpoint stop the run. Alarms, wrong deliveries and
bad input stop it at once. `--resume` is the first attempt of a new job.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from introspect_ray.actors.trainer import Trained, WorkerSpec, train_worker
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import trainer_gpus
from introspect_ray.errors import AlarmError, RepeatedFailure, UserError
from introspect_ray.runs.lent_group import GroupTrainer
from introspect_ray.storage import open_store
from introspect_ray.storage.checkpoints import FOLDER, newest_usable, step_of

_STOP_S = 10.0  # for a relabeler to confirm that it has stopped, and for the status board to answer


def decide(failures: int, before: int, now: int, limit: int) -> tuple[int, bool]:
    """After a failed attempt: (failures in a row without progress, whether to go on).

    failures: in a row before this attempt. before, now: steps of the checkpoints at its start and at its end.
    """
    failures = 1 if now > before else failures + 1
    return failures, failures < limit


def train_with_recovery(spec: WorkerSpec, start_relabeler: Callable[[], Any]) -> tuple[dict[str, Any], Trained]:
    """Train to the end. Returns what the relabeler and rank 0 say about the run.

    spec: of the run, without relabeler and checkpoint: each attempt has its own. Raises RepeatedFailure, and AlarmError
    and UserError of any part as themselves.
    """
    cfg, failures = spec.cfg, 0
    store = open_store(cfg.output_dir)
    checkpoint = newest_usable(store, spec.identity, _warn)
    if checkpoint:
        print(f"resume   from step {step_of(checkpoint)}", flush=True)
    while True:
        relabeler = start_relabeler()
        try:
            for note in spec.pool.revive():
                _warn(note)
            result: Any = _trainer(replace(spec, relabeler=relabeler, checkpoint=checkpoint)).fit()
            return ray.get(relabeler.finish.remote()), result.return_value
        except (TrainingFailedError, RayActorError) as error:
            what = failed_part(error, spec.pool.names())
        finally:
            _retire(relabeler)
        before, checkpoint = step_of(checkpoint), newest_usable(store, spec.identity, _warn)
        now = step_of(checkpoint)
        failures, again = decide(failures, before, now, cfg.train.max_failures)
        where = _progress(spec.status, spec.run_name)
        if not again:
            raise RepeatedFailure(
                f"{what} {where}: {failures} failure(s) in a row without a later checkpoint than that of step {now}. "
                "Remove the cause and go on with --resume, or set a smaller train.checkpoint_every "
                f"({cfg.train.checkpoint_every}; 0: none) or a larger train.max_failures ({cfg.train.max_failures})"
            )
        _warn(f"{what} {where}: going on from step {now} ({failures} of {cfg.train.max_failures} failures in a row)")


def failed_part(error: Exception, engines: Mapping[str, str]) -> str:
    """One line on what ended an attempt: the part and how it died. Raises an AlarmError or UserError as itself.

    Ray wraps an error of an actor (the relabeler) in one of its own, as its cause. engines: names by actor id.
    """
    failures = (
        error.worker_failures
        if isinstance(error, WorkerGroupError)
        else {None: getattr(error, "controller_failure", error)}
    )
    causes = {rank: getattr(failure, "cause", None) or failure for rank, failure in failures.items()}
    named = next((cause for cause in causes.values() if isinstance(cause, AlarmError | UserError)), None)
    if named:
        raise named from None
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


def process_groups(cfg: RunConfig) -> TorchConfig:
    """The backend of the workers' collectives: NCCL on GPUs, gloo on CPUs. Both where shards are offloaded, since the
    gradient norm is then summed over ranks on the CPU."""
    return TorchConfig(backend="cpu:gloo,cuda:nccl" if cfg.train.offload else None)


def _trainer(spec: WorkerSpec) -> TorchTrainer:
    """Ray Train without restarts and checkpoints of its own, which would keep the old relabeler.

    It does wait for room in the cluster: a start that times out is a failure of its controller.
    """
    cfg = spec.cfg
    lent = spec.group if spec.group and spec.group.workers == cfg.train.num_workers else None
    made: Any = partial(GroupTrainer, group=lent.group) if lent else TorchTrainer
    resources = {"CPU": cfg.train.num_cpus, **({"GPU": trainer_gpus(cfg)} if cfg.train.use_gpu else {})}
    trainer: TorchTrainer = made(
        train_worker,
        train_loop_config={"spec": spec},
        torch_config=process_groups(cfg),
        scaling_config=ScalingConfig(
            num_workers=cfg.train.num_workers, use_gpu=cfg.train.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=FOLDER,
            storage_path=cfg.output_dir,
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=-1 if cfg.wait_for_nodes else 0
            ),
        ),
    )
    return trainer
