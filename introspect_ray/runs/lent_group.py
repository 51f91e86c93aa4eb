"""Ray Train's workers in bundles of a placement group that is there already.

Ray Train makes a placement group for its workers, and has no setting to be given one. So a trial's engines and workers
would be two groups, and two trials could each hold one and wait for the other. This file and late_torch.py are the
places that rely on Ray's internals (2.60): `TrainController.worker_group_cls`, `WorkerGroup._create_placement_group`,
`FixedScalingPolicy`, and `DataParallelTrainer._initialize_and_run_controller` and `._register_sigint_handler`. Ray
hands callbacks that are not its users' through to the controller for such purposes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ray.train
from ray.train import FailureConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup

from introspect_ray.actors.trainer import WorkerSpec
from introspect_ray.config import RunConfig
from introspect_ray.runs.elastic import scaling
from introspect_ray.runs.late_torch import LateTorch
from introspect_ray.storage.checkpoints import FOLDER


class OwnSignals(DataParallelTrainer):
    """Ray Train, but SIGINT is left to signals.py: Ray's own handler would abort the training at once."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class GroupTrainer(OwnSignals):
    """Ray Train with worker i in bundle i of a placement group, which stays when training ends."""

    def __init__(self, *args: Any, group: PlacementGroup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group = group

    def _create_default_callbacks(self) -> list[Any]:
        """Without Ray's cleaner: it removes the group of a controller that died, and the engines are in this one. And
        without the actor that would hand out Ray datasets, which are not used: a process less to start."""
        made = super()._create_default_callbacks()
        left_out = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [_Lend(self._group), *(one for one in made if not isinstance(one, left_out))]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        """Called by fit."""
        return super()._initialize_and_run_controller(**{**given, "scaling_policy": _Lent(self.scaling_config)})


class _Lent(FixedScalingPolicy):
    """Asks the autoscaler for nothing, as the group has all resources already: Ray's policy would ask a second time,
    through an actor of its own for which the controller waits (5 s at most, and on a busy machine that long)."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Lend(ControllerCallback):
    """Makes the controller in whose process it runs use worker groups that are put into the lent placement group."""

    def __init__(self, group: PlacementGroup) -> None:
        self._group = group

    def after_controller_start(self, train_run_context: Any) -> None:
        lent = self._group

        class LentWorkerGroup(WorkerGroup):
            def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> _LentHandle:
                return _LentHandle(lent)

        TrainController.worker_group_cls = LentWorkerGroup


class _LentHandle(DefaultPlacementGroupHandle):
    """The end of the workers is not that of the group."""

    def shutdown(self) -> None:
        pass


def process_groups(cfg: RunConfig) -> LateTorch:
    """The backend of the workers' collectives: NCCL on GPUs, gloo on CPUs. Both where shards are offloaded, since the
    gradient norm is then summed over ranks on the CPU."""
    return LateTorch(backend="cpu:gloo,cuda:nccl" if cfg.train.offload else None)


def ray_trainer(spec: WorkerSpec, work: Callable[[dict[str, Any]], Any], config: dict[str, Any]) -> OwnSignals:
    """Ray Train on the workers of `spec`, each of which calls work(config). Without restarts and checkpoints of its
    own, which would keep the old relabeler.

    It does wait for room in the cluster: a start that times out is a failure of its controller.
    """
    cfg = spec.cfg
    lent = spec.group.group if spec.group and spec.group.workers == cfg.train.num_workers else None
    made: Any = partial(GroupTrainer, group=lent) if lent else OwnSignals
    trainer: OwnSignals = made(
        work,
        train_loop_config=config,
        backend_config=process_groups(cfg),
        scaling_config=scaling(cfg),
        run_config=ray.train.RunConfig(
            name=FOLDER,
            storage_path=cfg.output_dir,
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=-1 if cfg.wait_for_nodes else 0
            ),
        ),
    )
    return trainer
