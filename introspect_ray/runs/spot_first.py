"""Ray node providers that start an on-demand node where the cloud has no spot node. Used by cluster/*.yaml.

Ray 2.60 cannot be told so. Of node types of equal use its autoscaler takes that of the highest `priority`, unless the
type failed of late; but a launch that the cloud refuses is no failure to it. Only a node that was given and never came
up is (ALLOCATION_TIMEOUT in ray/autoscaler/v2/instance_manager/subscribers/cloud_resource_monitor.py), so that a type
without capacity would be asked for again and again. Here the provider itself asks a second time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


class SpotFirst:
    """For a class of its own before a node provider of Ray: class SpotFirstAWS(SpotFirst, AWSNodeProvider)."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start `count` nodes, each a spot node if there is one, else on-demand. Returns them by their ids.

        One request per node: providers differ in what they leave behind when some of several cannot be had. Raises
        what the provider does if there is no node of either kind.
        """
        made: dict[str, Any] = {}
        for _ in range(count):
            made |= self._create_one(node_config, tags)
        return made

    def _create_one(self, node_config: dict[str, Any], tags: dict[str, str]) -> dict[str, Any]:
        create = super().create_node  # type: ignore[misc]
        instead = on_demand(node_config)
        if instead is None:
            return create(node_config, tags, 1) or {}
        try:
            return create(node_config, tags, 1) or {}
        except Exception as error:  # AWS: NodeLaunchException; Google: HttpError, or a bare Exception of an operation
            logger.warning("no spot node (%s); asking for an on-demand node instead", error)
            return create(instead, tags, 1) or {}


def on_demand(node_config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same node on demand, of AWS (InstanceMarketOptions) or Google (scheduling); None if it is no spot node."""
    if node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot":
        return {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
    scheduling = node_config.get("scheduling", {})
    if scheduling.get("provisioningModel") == "SPOT":
        spot_only = ("provisioningModel", "instanceTerminationAction")
        kept = {key: value for key, value in scheduling.items() if key not in spot_only}
        return {**node_config, "scheduling": kept}
    return None
