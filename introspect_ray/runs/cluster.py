"""Joins or starts Ray, and refuses a run that has no room or no common disk before any actor starts."""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from introspect_ray import patience, signals
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import workers_text
from introspect_ray.config.load import cluster_address
from introspect_ray.errors import UserError
from introspect_ray.log_levels import DEFAULT, chosen_level, shows_workers
from introspect_ray.runs import local_ray
from introspect_ray.runs.nodes import HEAD, check_nodes, local_at_once, local_need
from introspect_ray.runs.placement import check_local_room, fewest, resources
from introspect_ray.storage import check_writable, open_store
from introspect_ray.storage.store import TEMPORARY

_QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray Train's polling; its default, 2 s, is longer than a step
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals.py has it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def connect(cfg: RunConfig, trials: Sequence[RunConfig] = ()) -> None:
    """Join the cluster of cfg.ray_address / RAY_ADDRESS, or start a local one of the size needed.

    trials: of a sweep, as many of which as there is room for will run at once; cfg is that of their set-up. Raises
    UserError if not even one run fits, unless `wait_for_nodes` says that an autoscaler will make room.
    """
    if len(trials) > 1 and cfg.train.elastic:
        raise UserError(
            f"train.num_workers={workers_text(cfg)}: each trial of a sweep holds a fixed number of workers, and as "
            "many trials run at once as have room: give one number"
        )
    patience.use(cfg.patience_s)  # of this process, and of those of the run
    if ray.is_initialized():
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address = cluster_address(cfg)
    common = logging_options(chosen_level())
    if address:
        runtime_env = {"env_vars": {name: os.environ[name] for name in (*_QUIET, patience.PATIENCE)}}
        try:
            ray.init(address=address, runtime_env=runtime_env, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = " ".join(str(error).split())[:200]
            raise UserError(f"no Ray cluster at {address}: {line}; start one or leave ray_address away") from None
        _check_cluster(cfg, len(trials))
        return
    check_local_room(cfg)
    need = local_need(cfg, trials, local_at_once(cfg, trials))
    # without a runtime_env: workers inherit this environment, and prestarted ones can be used
    local_ray.start(math.ceil(need["CPU"]) + 1, common)


def logging_options(level: str) -> dict[str, Any]:
    """How ray.init logs at a level of --log-level: quiet by default. From info on the driver prints what all processes
    log, and the autoscaler's messages, which `log_to_driver` hides too."""
    if level == DEFAULT:
        return {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    return {
        "log_to_driver": shows_workers(level),
        "logging_level": level.upper(),
        "configure_logging": True,
        "logging_config": ray.LoggingConfig(encoding="TEXT", log_level=level.upper()),  # of the workers' root loggers
    }


@contextmanager
def connected(cfg: RunConfig, trials: Sequence[RunConfig] = ()) -> Iterator[None]:
    """`connect` for the time of the body. A cluster that was joined stays up, one started here ends with the body, and
    a caller's own connection to Ray is left alone. In a command SIGINT and SIGTERM stay ours (signals.py)."""
    callers = ray.is_initialized()
    try:
        try:
            connect(cfg, trials)
        except SystemExit as end:  # of Ray's own handler of SIGTERM, which it has while it starts
            raise signals.interrupted(signal.SIGTERM, end) from None
        signals.again(cfg.stop_within_s)
        yield
    finally:
        if not callers:
            local_ray.end(hard=signals.asked() is not None)


def _check_cluster(cfg: RunConfig, trials: int) -> None:
    check_nodes(cfg)
    have, need = ray.cluster_resources(), resources(fewest(cfg))
    short = any(want > have.get(name, 0.0) for name, want in need.items())
    check_folders(cfg, more_nodes=cfg.wait_for_nodes and (short or trials > 1))


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """For actors that need no resources: on the driver's node, without which they are of no use.

    Ray would put them on any node, and a preempted spot node would then take them away together with a trainer. Not
    soft: with soft=True Ray 2.60 still places an actor without resources at random.
    """
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def this_node_resource() -> str:
    """The name of the resource that only this node has: Ray Tune places trials by resources alone.

    The head's is its role, since several nodes of one machine share their address.
    """
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    return HEAD if HEAD in node["Resources"] else f"node:{node['NodeManagerAddress']}"


def check_folders(cfg: RunConfig, more_nodes: bool) -> None:
    """Raise UserError for a local folder that the nodes do not share: files written there would stay on one node.

    A folder is shared if every other node sees a file that is written into it here. more_nodes: some nodes are still to
    come. They cannot share a folder on this node's root file system, so it is refused; about any other folder the
    training workers raise when they start (trainer._check_output).
    """
    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    others.pop(here, None)
    for key, folder, remedy in _local_folders(cfg):
        check_writable(folder)
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        blind = blind_nodes(there, list(others))
        if blind:
            why = f"{len(blind)} of {len(others) + 1} nodes do not see it, e.g. {others[blind[0]]}"
        elif more_nodes and there.stat().st_dev == Path("/").stat().st_dev:
            why = "the run waits for nodes that will not see it"
        else:
            continue
        raise UserError(f"{key} is {folder} on this node's disk, and {why}: {remedy}")


def blind_nodes(folder: Path, nodes: Sequence[str]) -> list[str]:
    """The nodes (ids) that do not see a file written into `folder` on this node. Leaves nothing behind."""
    look = ray.remote(num_cpus=0)(os.path.exists)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=TEMPORARY) as marker:
        answers = {
            node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(marker.name)
            for node in nodes
        }
        return [node for node, answer in answers.items() if not _answer(answer)]


def _answer(answer: Any) -> bool:
    try:
        return bool(ray.get(answer))
    except RayError:  # the node is gone: nothing will run there
        return True


def _local_folders(cfg: RunConfig) -> Iterator[tuple[str, Path, str]]:
    """(config key, folder, remedy) of every folder that is on a local disk."""
    common = "name an s3:// folder, or one on a file system that all nodes share"
    for key, uri in (("output_dir", cfg.output_dir), ("cache_dir", cfg.cache_dir or cfg.output_dir)):
        folder = open_store(uri).local_path()
        if folder is not None:
            yield key, folder, common
    uri = cfg.tracking.uri or ""
    if cfg.tracking.backend == "mlflow" and uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///")).expanduser().absolute()
        yield "tracking.uri", database.parent, "name an MLflow server (http://...), or set tracking.backend=jsonl"
