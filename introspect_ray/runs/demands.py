"""What a cluster lacks, as lines: demands that no node meets, nodes that the autoscaler starts, and those that failed.

The source is what Ray's own `ray status` shows: the state that the head keeps for the autoscaler (v2's sdk). It is
there without a dashboard, and without an autoscaler the part on nodes is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from introspect_ray.runs.lines import duration

_SHOWN = ("CPU", "GPU")


def usage_line(status: Any) -> str:
    """Example: "3 nodes, CPU 12 of 16, GPU 8 of 8 in use"."""
    nodes = len(status.active_nodes) + len(status.idle_nodes)
    used = {one.resource_name: one for one in status.cluster_resource_usage}
    parts = [f"{name} {used[name].used:g} of {used[name].total:g}" for name in _SHOWN if name in used]
    return f"{nodes} node{'s' * (nodes != 1)}, {', '.join(parts) or 'no CPU and no GPU'} in use"


def waiting_lines(status: Any, now: float) -> list[str]:
    """Pending demands, nodes that start, and launches and nodes that failed, from a ray.autoscaler.v2 ClusterStatus.

    now: seconds as of time.time.
    """
    demands = status.resource_demands
    lines = [
        f"waits for room: {_bundles(demand.bundles_by_count)} (actors or tasks)"
        for demand in demands.ray_task_actor_demand
    ]
    lines += [
        f"waits for room: {_bundles(demand.bundles_by_count)} together (placement group, {demand.strategy})"
        for demand in demands.placement_group_demand
    ]
    lines += [
        f"node asked for: {launch.count} x {launch.ray_node_type_name}, {duration(now - launch.request_ts_s)} ago"
        for launch in status.pending_launches
    ]
    lines += [
        f"node starts: {node.ray_node_type_name} {node.ip_address or node.instance_id}, {node.details or 'no details'}"
        for node in status.pending_nodes
    ]
    lines += [
        f"node not given: {launch.count} x {launch.ray_node_type_name}, "
        f"{duration(now - (launch.failed_ts_s or launch.request_ts_s))} ago: {launch.details or 'no reason given'}"
        for launch in status.failed_launches
    ]
    return lines + [
        f"node failed: {node.ray_node_type_name} {node.ip_address or node.instance_id}, "
        f"{node.failure_detail or node.details or 'no reason given'}"
        for node in status.failed_nodes
    ]


def _bundles(counted: Iterable[Any]) -> str:
    return " + ".join(f"{one.count} x {_resources(one.bundle)}" for one in counted)


def _resources(bundle: Mapping[str, float]) -> str:
    """Example: {"GPU": 1.0, "CPU": 2.0} -> "(CPU 2, GPU 1)"."""
    return f"({', '.join(f'{name} {amount:g}' for name, amount in sorted(bundle.items()))})"
