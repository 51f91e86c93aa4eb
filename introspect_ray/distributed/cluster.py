"""Joining or starting Ray, and refusing a run that has no room before any actor starts."""

from __future__ import annotations

import logging
import os

import ray

from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError
from introspect_ray.preflight import check_local_room, cluster_address, resources

_QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the controller polls: 2 s by default, longer than an organism's step
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
# A cluster of this process's own: no node is ever preempted, and workers at Ray's niceness of 15 would starve
# beside anything else that runs on the machine.
_LOCAL = {"RAY_worker_niceness": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def connect(cfg: RunConfig) -> None:
    """Join the cluster of cfg.ray_address / RAY_ADDRESS, or start a local one of the size needed.

    Raises UserError when the run does not fit, unless `wait_for_nodes` says an autoscaler will make room.
    """
    if ray.is_initialized():
        return
    need = resources(cfg)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address = cluster_address(cfg)
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address:
        runtime_env = {"env_vars": {name: os.environ[name] for name in _QUIET}}
        try:
            ray.init(address=address, runtime_env=runtime_env, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = " ".join(str(error).split())[:200]
            raise UserError(f"no Ray cluster at {address}: {line}; start one or leave ray_address away") from None
        _check_cluster(cfg, need)
        return
    check_local_room(cfg)
    for name, value in _LOCAL.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        num_cpus=int(-(-need["CPU"] // 1)) + 1,  # one for what is small: Tune trials, the reference task
        include_dashboard=False,
        **common,  # no runtime_env: workers inherit this process's environment, and those started ahead can be used
    )


def _check_cluster(cfg: RunConfig, need: dict[str, float]) -> None:
    have = ray.cluster_resources()
    short = {name: (want, have.get(name, 0.0)) for name, want in need.items() if want > have.get(name, 0.0)}
    if short and not cfg.wait_for_nodes:
        what = ", ".join(f"{want:g} {name}s, it has {got:g}" for name, (want, got) in short.items())
        raise UserError(
            f"no room for the requested workers: the cluster needs {what}: lower train.num_workers or "
            "rollout.num_actors, or set wait_for_nodes=true where an autoscaler adds nodes"
        )
