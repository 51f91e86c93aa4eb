"""The nodes of the joined cluster and those that its autoscaler may add, by their logical resources."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import yaml

from introspect_ray.config import RunConfig, override
from introspect_ray.config.load import cluster_address
from introspect_ray.errors import UserError
from introspect_ray.runs.placement import MIN_CORES, OVERSUBSCRIPTION, Resources, resources
from introspect_ray.runs.slots import Nodes, NodeType, engines_shared, needed, obstacle, trials_at_once

# Where Ray's cluster launcher puts the autoscaler's config on the head node, on which a submitted job's driver runs.
LAUNCHED = Path("~/ray_bootstrap_config.yaml")
HEAD = "node:__internal_head__"  # a resource that Ray gives to the head node alone
_MANY = 1000  # nodes of a type at most


def cluster_nodes(cfg: RunConfig) -> Nodes:
    """The nodes that are there, and with wait_for_nodes those that may come."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = [named(one) for one in alive]
    if not cfg.wait_for_nodes:
        return Nodes(there)
    launched = LAUNCHED.expanduser()
    if launched.is_file():
        heads = [named(one) for one in alive if HEAD in one]
        return launcher_nodes(heads, yaml.safe_load(launched.read_text()))
    return Nodes(there, None)  # e.g. KubeRay's, whose limits only the operator knows


def launcher_nodes(heads: Sequence[Resources], config: Mapping[str, Any]) -> Nodes:
    """From the config of Ray's cluster launcher; nodes beside the head are the autoscaler's, and counted as its types.

    max_workers is the limit of all types together, and of a type that has none.
    """
    most, head = int(config.get("max_workers", 0)), config.get("head_node_type")
    types = [
        NodeType(name, named(kind.get("resources", {})), min(int(kind.get("max_workers", most)), most, _MANY))
        for name, kind in config.get("available_node_types", {}).items()
        if name != head
    ]
    return Nodes(heads, types, most)


def named(resources: Mapping[str, Any]) -> Resources:
    """CPUs and GPUs alone."""
    return {name: float(resources[name]) for name in ("CPU", "GPU") if resources.get(name)}


def check_nodes(cfg: RunConfig) -> None:
    """Raise UserError for a trial that the cluster can never have room for, with the numbers."""
    why = obstacle(cfg, cluster_nodes(cfg))
    if why and cfg.wait_for_nodes:
        raise UserError(
            f"no room for the requested workers, even with every node that the autoscaler may add: {why}: lower "
            "train.num_workers or rollout.num_actors, or raise the limits in the cluster's config"
        )
    if why:
        raise UserError(
            f"no room for the requested workers: {why}: lower train.num_workers or rollout.num_actors, or set "
            "wait_for_nodes=true where an autoscaler adds nodes"
        )


def at_once(cfg: RunConfig, trials: Sequence[RunConfig]) -> int:
    """How many of the trials run at once on the connected cluster, or on the local one of this machine.

    cfg: of the set-up.
    """
    found = trials_at_once(cfg, trials, cluster_nodes(cfg))
    return found if cluster_address(cfg) else min(found, local_at_once(cfg, trials))


def local_at_once(cfg: RunConfig, trials: Sequence[RunConfig]) -> int:
    """How many of the trials a local cluster is made for, at least one: a core per thread that works at the same time
    as others, or half a core per logical CPU where sweep.trials_at_once asks for it; and a GPU each."""
    cores, asked = os.cpu_count() or 1, cfg.sweep.trials_at_once
    working = {
        "train.num_cpus": max(cfg.train.num_cpus, cfg.train.threads),
        "rollout.num_cpus": 0 if engines_shared(trials) else max(cfg.rollout.num_cpus, cfg.rollout.threads),
    }  # engines that are shared rest while policies train
    wants, cpus = (cfg, max(cores, MIN_CORES) * OVERSUBSCRIPTION) if asked else (override(cfg, working), cores)
    for count in range(min(len(trials), asked or len(trials)), 1, -1):
        need = local_need(wants, trials, count)
        if need["CPU"] <= cpus and (not need["GPU"] or need["GPU"] <= _gpus()):
            return count
    return 1


def local_need(cfg: RunConfig, trials: Sequence[RunConfig], count: int) -> dict[str, float]:
    """Logical CPUs and GPUs of `count` trials at once."""
    if count == 1:
        return resources(cfg)
    groups = needed(cfg, engines_shared(trials), count)
    return {name: math.fsum(bundle.get(name, 0.0) for group in groups for bundle in group) for name in ("CPU", "GPU")}


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
