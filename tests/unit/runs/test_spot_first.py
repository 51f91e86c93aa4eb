"""Nodes are asked for as spot first, on demand where the cloud refuses; Ray's AWS provider against stubbed answers."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from introspect_ray.runs.spot_first import SpotFirst, on_demand

SPOT = {"InstanceType": "p5.48xlarge", "InstanceMarketOptions": {"MarketType": "spot"}}
GOOGLE = {
    "machineType": "a3-highgpu-8g",
    "scheduling": {
        "provisioningModel": "SPOT", "instanceTerminationAction": "DELETE", "onHostMaintenance": "TERMINATE",
    },
}  # fmt: skip


def test_the_same_node_on_demand() -> None:
    assert on_demand(SPOT) == {"InstanceType": "p5.48xlarge"}
    assert on_demand(GOOGLE) == {"machineType": "a3-highgpu-8g", "scheduling": {"onHostMaintenance": "TERMINATE"}}
    assert on_demand({"InstanceType": "m7i.4xlarge"}) is None
    assert "InstanceMarketOptions" in SPOT and "provisioningModel" in GOOGLE["scheduling"]  # neither is changed


class Cloud:
    """Has so many spot nodes, and as many others as asked for unless there are none."""

    def __init__(self, spot: int, other: bool = True) -> None:
        self.spot, self.other, self.made = spot, other, []

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        spot = "InstanceMarketOptions" in node_config
        if (spot and len([kind for kind in self.made if kind]) + count > self.spot) or not (spot or self.other):
            raise RuntimeError("no capacity")
        self.made += count * [spot]
        return {f"{tags['name']}-{len(self.made)}": object()}


class SpotFirstCloud(SpotFirst, Cloud):
    pass


def test_each_node_is_spot_as_long_as_there_is_one() -> None:
    cloud = SpotFirstCloud(spot=2)
    assert set(cloud.create_node(SPOT, {"name": "a"}, 3)) == {"a-1", "a-2", "a-3"}
    assert cloud.made == [True, True, False]
    assert list(cloud.create_node({"InstanceType": "m7i.4xlarge"}, {"name": "head"}, 1)) == ["head-4"]


def test_without_nodes_of_either_kind_it_raises() -> None:
    with pytest.raises(RuntimeError, match="no capacity"):
        SpotFirstCloud(spot=0, other=False).create_node(SPOT, {"name": "a"}, 1)
    with pytest.raises(RuntimeError, match="no capacity"):
        SpotFirstCloud(spot=1, other=False).create_node({"InstanceType": "m7i.4xlarge"}, {"name": "head"}, 1)


def test_rays_aws_provider_asks_on_demand_after_aws_has_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray asks for a spot node in every subnet, several times; then one request without the market."""
    from ray.autoscaler._private.aws import node_provider

    from introspect_ray.runs.spot_first_aws import SpotFirstAWS

    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    ec2 = boto3.resource("ec2", region_name="us-west-2")
    monkeypatch.setattr(node_provider, "make_ec2_resource", lambda **_: ec2)
    provider = SpotFirstAWS({"region": "us-west-2", "cache_stopped_nodes": False}, "introspect-ray")
    asked = {"InstanceType": "p5.48xlarge", "MinCount": 1, "MaxCount": 1, "SubnetId": ANY, "TagSpecifications": ANY}
    with Stubber(ec2.meta.client) as aws:
        for _ in range(node_provider.BOTO_CREATE_MAX_RETRIES):
            refused = {**asked, "InstanceMarketOptions": {"MarketType": "spot"}}
            aws.add_client_error("run_instances", "InsufficientInstanceCapacity", expected_params=refused)
        node = {"InstanceId": "i-1", "State": {"Name": "pending"}, "StateReason": {"Message": "pending"}}
        aws.add_response("run_instances", {"Instances": [node]}, asked)
        made = provider.create_node({**SPOT, "SubnetIds": ["subnet-a", "subnet-b"]}, {"ray-node-name": "worker"}, 1)
        aws.assert_no_pending_responses()
    assert list(made) == ["i-1"]
