"""A provider of Ray's autoscaler that starts its nodes on this machine, and never has any of the types `never`."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE


class ScarceProvider(FakeMultiNodeProvider):
    """As a cloud without capacity of a type: each request for it fails."""

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> Any:
        kind = tags[TAG_RAY_USER_NODE_TYPE]
        if kind in self.provider_config["never"]:
            raise NodeLaunchException("InsufficientInstanceCapacity", f"there is no {kind} to be had", None)
        return super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
