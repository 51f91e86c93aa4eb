"""The files of Ray's cluster launcher, against Ray's schema, AWS's request model and Google's fields."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from cluster_fields import GOOGLE_INSTANCE, faults

from introspect_ray import __version__
from introspect_ray.runs.spot_first import on_demand

CLUSTER = Path(__file__).parents[3] / "cluster"
LAUNCHED = ("aws-h100", "aws-h100-efa", "gcp-h100")
AWS = botocore.session.get_session()


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = read(name)
    prepared = prepare_config(copy.deepcopy(given))
    validate_config(prepared)
    assert given["docker"]["image"] == f"YOUR_REGISTRY/introspect-ray:{__version__}"
    # What Ray's providers would fill in calls pip, which the image has not, or stops an H100 for later.
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []
    assert prepared["provider"]["cache_stopped_nodes"] is False
    head, h100 = (prepared["available_node_types"][node] for node in ("head", "h100"))
    assert head["max_workers"] == 0 and "GPU" not in head["resources"]
    assert h100["min_workers"] == 0 and h100["max_workers"] == prepared["max_workers"] == 8
    assert on_demand(h100["node_config"]) and on_demand(head["node_config"]) is None


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_keys_that_rays_own_providers_have_defaults_for_are_there(name: str) -> None:
    """A provider of type external gets no defaults: what `ray up` would miss is what the own type's defaults have."""
    from ray.autoscaler._private.providers import _get_default_config

    cloud = name.partition("-")[0]
    assert not _get_default_config({"type": cloud}).keys() - read(name).keys()


@pytest.mark.parametrize("name", ["aws-h100", "aws-h100-efa"])
@pytest.mark.parametrize("node", ["head", "h100"])
def test_the_node_is_a_valid_request_to_aws(name: str, node: str) -> None:
    """RunInstances as botocore checks it, which refuses unknown and misplaced fields."""
    request = read(name)["available_node_types"][node]["node_config"]
    request.pop("SubnetIds", None)  # Ray takes one of them, or those of the interfaces
    request |= {"MinCount": 1, "MaxCount": 1}
    shape = AWS.get_service_model("ec2").operation_model("RunInstances").input_shape
    assert not ParamValidator().validate(request, shape).has_errors(), request
    assert request["IamInstanceProfile"]["Name"] == (
        "introspect-ray-head" if node == "head" else "introspect-ray-worker"
    )


@pytest.mark.parametrize("node", ["head", "h100"])
def test_the_node_is_a_valid_request_to_google(node: str) -> None:
    request = read("gcp-h100")["available_node_types"][node]["node_config"]
    assert faults(request, GOOGLE_INSTANCE) == []


def test_efa_changes_network_and_placement_alone() -> None:
    """One interface per network card, all in one subnet and group with the head; the rest is aws-h100.yaml."""
    plain, efa = read("aws-h100"), read("aws-h100-efa")
    head, h100 = (efa["available_node_types"][node]["node_config"] for node in ("head", "h100"))
    cards = h100.pop("NetworkInterfaces")
    assert [card["NetworkCardIndex"] for card in cards] == list(range(32))
    assert [card["DeviceIndex"] for card in cards] == [0] + 31 * [1]
    assert [card["InterfaceType"] for card in cards] == ["efa"] + 31 * ["efa-only"]
    assert {card["SubnetId"] for card in cards} == set(head.pop("SubnetIds"))
    assert {group for card in cards for group in card["Groups"]} == set(head.pop("SecurityGroupIds"))
    assert h100.pop("Placement") and efa["docker"].pop("worker_run_options")
    assert efa["provider"].pop("use_internal_ips") is True
    assert efa["provider"].pop("availability_zone") in plain["provider"].pop("availability_zone").split(",")
    assert efa.pop("cluster_name") != plain.pop("cluster_name")
    assert efa == plain


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_command_for_a_node_is_valid_bash(name: str) -> None:
    config = read(name)
    nodes = [config, *config["available_node_types"].values()]
    commands = [line for node in nodes for key, lines in node.items() if key.endswith("_commands") for line in lines]
    assert len(commands) > 10
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


# --- rights -------------------------------------------------------------------------------------------------------


def policies() -> dict[str, list[dict[str, Any]]]:
    return {path.stem: json.loads(path.read_text())["Statement"] for path in sorted((CLUSTER / "iam").glob("*.json"))}


def test_policies_name_actions_that_aws_has() -> None:
    """botocore's operations, where an action is one. S3's object rights have other names than its operations."""
    apis = {service: set(AWS.get_service_model(service).operation_names) for service in ("ec2", "iam", "ecr", "sts")}
    actions = {
        action
        for statements in policies().values()
        for statement in statements
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    checked = {action for action in actions if action.partition(":")[0] in apis} - {"iam:PassRole"}
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "sts:AssumeRole"} <= checked
    for action in checked:
        service, _, operation = action.partition(":")
        assert operation in apis[service], action


def test_the_head_may_do_what_rays_provider_calls_and_no_more() -> None:
    """Its EC2 calls, from the source, without those that stop nodes for later, which the file switches off."""
    import inspect

    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    source = inspect.getsource(AWSNodeProvider)
    calls = {
        "create_instances": "RunInstances",
        "instances.filter": "DescribeInstances",
        "create_tags": "CreateTags",
        "terminate_instances": "TerminateInstances",
        "start_instances": None,
        "stop_instances": None,
        "describe_images": None,  # for CloudWatch's agent
    }
    found = set(re.findall(r"self\.ec2(?:_fail_fast)?\.(?:meta\.client\.)?([a-z_]+(?:\.filter)?)\(?", source))
    found = {name for name in found if not name.startswith("meta")}
    assert found <= calls.keys(), found
    allowed = {
        action
        for statement in policies()["aws-head"]
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    assert allowed == {f"ec2:{calls[name]}" for name in found if calls[name]} | {"iam:PassRole"}


def test_rights_fit_the_nodes_of_the_files() -> None:
    (start,) = (one for one in policies()["aws-head"] if one["Sid"].startswith("StartWorkers"))
    for name in ("aws-h100", "aws-h100-efa"):
        config = read(name)
        kind = config["available_node_types"]["h100"]["node_config"]["InstanceType"]
        assert start["Condition"]["StringEquals"]["ec2:InstanceType"] == kind
        tag = start["Condition"]["StringLike"]["aws:RequestTag/ray-cluster-name"]
        assert config["cluster_name"].startswith(tag.rstrip("*"))


def test_googles_role_is_of_the_form_that_gcloud_reads() -> None:
    role = yaml.safe_load((CLUSTER / "iam" / "gcp-head.yaml").read_text())
    assert role.keys() == {"title", "stage", "includedPermissions"}
    wanted = {f"compute.instances.{verb}" for verb in ("create", "delete", "get", "list", "setLabels")}
    assert wanted | {"compute.zoneOperations.get"} <= set(role["includedPermissions"])
