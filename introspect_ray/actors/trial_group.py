"""The placement group of one trial: its training workers and engines, near each other, all of them or none.

Ray makes a group only when there is room for all of its bundles at once, so two trials never hold half of what they
need each and wait for the other half. A bundle that goes with its node is placed anew by Ray, and who was in it starts
there. An autoscaler sees the bundles that wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@dataclass(frozen=True)
class TrialGroup:
    """A placement group whose first bundles are those of the training workers. Picklable.

    group: None where there are no bundles: of elastic workers alone, or of engines that need no resources. workers,
    engines: how many of each have bundles. paired: engine i shares the bundle of training worker i. kept: handle of a
    KeptWorkers (runs/kept_workers.py), whose workers stay in the group from one training to the next; None: each
    training has new ones.
    """

    group: PlacementGroup | None
    workers: int
    engines: int
    paired: bool
    kept: Any = None

    @classmethod
    def make(cls, bundles: Sequence[dict[str, float]], workers: int, engines: int) -> TrialGroup:
        """Ask for a group; it is ready when Ray has found room. It ends with the process or actor that asked for it."""
        group = placement_group(list(bundles), strategy="PACK") if bundles else None
        return cls(group, workers, engines, paired=len(bundles) < workers + engines)

    def ready(self) -> Any:
        """A future: Ray has found room for all bundles."""
        return self.group.ready() if self.group else ray.put(None)

    def engine_places(self) -> list[Any]:
        """Scheduling strategies of the engines, in their order; of none if engines need no resources."""
        first = 0 if self.paired else self.workers
        return [self._bundle(number) for number in range(first, first + self.engines)]

    def anywhere(self) -> Any:
        """The scheduling strategy of something short that is done where workers will be, and elastic ones may be
        anywhere."""
        return self._bundle(-1) if self.workers else "DEFAULT"

    def _bundle(self, number: int) -> Any:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=number)

    def remove(self) -> None:
        """Give the resources back; ends everything that runs in the group."""
        if self.group:
            remove_placement_group(self.group)
