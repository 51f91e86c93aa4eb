"""Ray Train's workers in bundles of a placement group that is there already.

Ray Train makes a placement group for its workers, and has no setting to be given one. So a trial's engines and workers
would be two groups, and two trials could each hold one and wait for the other. This is the one place that relies on
Ray's internals (2.60): `TrainController.worker_group_cls`, and `WorkerGroup._create_placement_group`. Ray hands
callbacks that are not its users' through to the controller for such purposes.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import PlacementGroup


class GroupTrainer(TorchTrainer):
    """A TorchTrainer whose worker i runs in bundle i of a placement group, which stays when training ends."""

    def __init__(self, *args: Any, group: PlacementGroup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group = group

    def _create_default_callbacks(self) -> list[Any]:
        """Without Ray's cleaner: it removes the group of a controller that died, and the engines are in this one. And
        without the actor that would hand out Ray datasets, which are not used: a process less to start."""
        made = super()._create_default_callbacks()
        left_out = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [_Lend(self._group), *(one for one in made if not isinstance(one, left_out))]


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
