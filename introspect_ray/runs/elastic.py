"""Ray Train's workers as it is told to start them, and elastic ones beside engines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray.train import ScalingConfig

from introspect_ray.config import RunConfig
from introspect_ray.runs.placement import apart, bundles, worker_resources

RESIZE_S = 300.0  # between two looks for room for more workers: a resize costs a restart from the last checkpoint
_RENEW_S, _EXPIRE_S = 60.0, 180.0


def scaling(cfg: RunConfig) -> ScalingConfig:
    """The workers of a training."""
    return ScalingConfig(
        num_workers=cfg.train.num_workers,
        use_gpu=cfg.train.use_gpu,
        resources_per_worker={"CPU": cfg.train.num_cpus, **worker_resources(cfg)},
        elastic_resize_monitor_interval_s=RESIZE_S,
    )


def engines_counted(cfg: RunConfig, run: str) -> Any:
    """A context in which Ray Train counts the room for elastic workers beside the engines of the run.

    It asks Ray's AutoscalingCoordinator, which divides all that the nodes have among those who asked it and knows
    nothing of actors that are simply there. Without this it would count on the engines' GPUs, and start more workers
    than there is room for, again and again.
    """
    return _reserved(cfg, run) if cfg.train.elastic else nullcontext()


@contextmanager
def _reserved(cfg: RunConfig, run: str) -> Iterator[None]:
    from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    coordinator, requester, over = get_or_create_autoscaling_coordinator(), f"engines-{run}", threading.Event()
    taken = [*bundles(cfg, trainers=False), *apart(cfg)]

    def ask() -> Any:
        # As urgent as Ray Train's own request, and earlier.
        return coordinator.request_resources.remote(
            requester_id=requester, resources=taken, expire_after_s=_EXPIRE_S, priority=ResourceRequestPriority.HIGH
        )

    def renew() -> None:
        while not over.wait(_RENEW_S):
            ask()

    ray.get(ask())
    thread = threading.Thread(target=renew, name=requester, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        coordinator.cancel_request.remote(requester)
