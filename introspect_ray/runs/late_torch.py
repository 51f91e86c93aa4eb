"""Ray Train's torch backend, for a driver and a controller that do not import torch.

`ray.train.torch` imports torch wherever it is named: in the driver, in the process of each trial and in the controller
of each training, 2 seconds of a core each and one after another. Here the workers alone import it, which call the
functions of Ray's own backend (2.60). On one machine their rendezvous listens on loopback alone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

from introspect_ray.engines.loopback import keep_local

_LEAVE_S = 30.0  # Ray's own limit


@dataclass
class LateTorch(BackendConfig):
    """Process groups of torch among the workers. backend: NCCL on GPUs, gloo on CPUs, unless it is given."""

    backend: str | None = None

    @property
    def backend_cls(self) -> type[Backend]:
        return _LateBackend

    @property
    def train_func_context(self) -> type[_Device]:
        return _Device

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH


class _Device:
    """In a worker: makes its GPU the current one, as Ray's own context does."""

    def __enter__(self) -> None:
        from ray.train.torch.config import TorchConfigContextManager

        TorchConfigContextManager().__enter__()

    def __exit__(self, *_: object) -> None:
        pass


class _LateBackend(Backend):
    """In the controller: has the workers join a process group, and leave it."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, LateTorch)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        backend = backend_config.backend or ("nccl" if gpus else "gloo")
        address, port = worker_group.execute_single(0, get_address_and_port)
        world = len(worker_group)
        ray.get([worker_group.execute_single_async(i, _join, backend, i, world, address, port) for i in range(world)])

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        with suppress(GetTimeoutError):  # the workers are ended next
            ray.get(worker_group.execute_async(_leave, len(worker_group) > 1), timeout=_LEAVE_S)


def _join(backend: str, rank: int, world: int, address: str, port: int) -> None:
    from ray.train.torch import config as of_ray

    keep_local()
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    of_ray._set_torch_distributed_env_vars()
    of_ray._setup_torch_process_group(backend, rank, world, "env://")


def _leave(several: bool) -> None:
    from ray.train.torch import config as of_ray

    of_ray._shutdown_torch(destroy_process_group=several)
