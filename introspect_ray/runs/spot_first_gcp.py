"""Ray's Google Cloud nodes, spot first: in cluster/gcp-h100.yaml. Needs the extra `gcp`."""

from __future__ import annotations

from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

from introspect_ray.runs.spot_first import SpotFirst


class SpotFirstGCP(SpotFirst, GCPNodeProvider):
    """Everything but the launch is Ray's, its bootstrap (keys, subnets, service account) included."""
