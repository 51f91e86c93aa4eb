"""Ray's AWS nodes, spot first: `provider: {type: external, module: ...}` in cluster/aws-h100.yaml. Imports boto3."""

from __future__ import annotations

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

from introspect_ray.runs.spot_first import SpotFirst


class SpotFirstAWS(SpotFirst, AWSNodeProvider):
    """Everything but the launch is Ray's, its bootstrap (keys, subnets, security group) included."""
