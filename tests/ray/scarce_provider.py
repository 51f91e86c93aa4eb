"""A provider of Ray's autoscaler that starts its nodes on this machine, but for those of the types `never`."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import NODE_KIND_WORKER, STATUS_UP_TO_DATE, TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME
from ray.autoscaler.tags import TAG_RAY_NODE_STATUS as STATUS
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE as TYPE


class ScarceProvider(FakeMultiNodeProvider):
    """As a cloud without capacity of a type: what is asked for stays pending, as a pod on Kubernetes does, until the
    autoscaler gives it up.

    Its second version (Ray 2.60) prefers other types only after such a timeout. A request that fails at once it repeats
    for ever.
    """

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> Any:
        if tags[TYPE] not in self.provider_config["never"]:
            return super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
        with self.lock:
            for _ in range(count):
                node = self._next_hex_node_id()
                own = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_NODE_NAME: node, STATUS: STATUS_UP_TO_DATE}
                self._nodes[node] = {"tags": {**own, **tags}, "node": None}
        return None

    def _terminate_node(self, node: dict[str, Any]) -> None:
        if node["node"] is not None:
            super()._terminate_node(node)
