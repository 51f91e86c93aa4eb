"""How many trials of a sweep can run at once: what a place for one needs, and how many places the nodes have room for.

    who trains, who is asked                     a place (slot) of a trial is
    ---------------------------------------------------------------------------------------------------------------
    online labels, made by the engines           training workers and engines of its own
    fixed or mixed labels, or made by the        training workers of its own; the engines of the set-up score the
    learner: no engine works while it trains     trained policies of all trials, one after another

The first place is that of the set-up, whose engines have M0's labels made already. Pure functions of configs and nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import no_engine_works
from introspect_ray.runs.placement import Resources, apart, bundles, fewest, phases, resources

_ROUNDING = 1e-9  # fractions of a GPU add up to 1 but for rounding


@dataclass(frozen=True)
class NodeType:
    """Nodes that an autoscaler may start. most: of them at once. Resources by Ray's names."""

    name: str
    resources: Resources
    most: int


@dataclass(frozen=True)
class Nodes:
    """The logical resources of the nodes that are there, and of those that an autoscaler may add (None: unknown).

    most_added: of all types together; None: as many as the types allow.
    """

    there: Sequence[Resources]
    types: Sequence[NodeType] | None = ()
    most_added: int | None = None

    def all(self) -> list[Resources]:
        """Every node that could be there at once, as far as it is known; of the types the largest first."""
        added = [kind.resources for kind in sorted(self.types or (), key=_size, reverse=True) for _ in range(kind.most)]
        return [*self.there, *added[: self.most_added]]


def _size(kind: NodeType) -> tuple[float, float]:
    return kind.resources.get("GPU", 0.0), kind.resources.get("CPU", 0.0)


def engines_shared(trials: Sequence[RunConfig]) -> bool:
    """Whether the trials can share one set of engines: none of them asks an engine while it trains.

    Elastic training workers are in no group, so a place without engines would be one without anything.
    """
    return all(no_engine_works(one) and not one.train.elastic for one in trials)


def needed(cfg: RunConfig, shared: bool, count: int) -> list[list[Resources]]:
    """The groups of bundles that `count` trials at once need: what is beside all places, the first one, the others."""
    beside = [[one] for one in apart(cfg) if one]
    return [*beside, bundles(cfg), *[bundles(cfg, engines=not shared)] * (count - 1)]


def place(nodes: Sequence[Resources], groups: Sequence[Sequence[Resources]]) -> int:
    """How many of the groups, in their order, find room: each whole or not at all, and none after one that does not.

    Each bundle goes to the first node that has room, the largest of a group first: as many as this finds have room, and
    rarely one more would have.
    """
    free = [dict(node) for node in nodes]
    for count, group in enumerate(groups):
        taken: list[tuple[dict[str, float], Resources]] = []
        for bundle in sorted(group, key=lambda one: (one.get("GPU", 0.0), one.get("CPU", 0.0)), reverse=True):
            node = next((node for node in free if _fits(bundle, node)), None)
            if node is None:
                return count
            taken.append((node, bundle))
            for name, need in bundle.items():
                node[name] -= need
    return len(groups)


def _fits(bundle: Resources, node: Mapping[str, float]) -> bool:
    return all(need <= node.get(name, 0.0) + _ROUNDING for name, need in bundle.items())


def trials_at_once(cfg: RunConfig, trials: Sequence[RunConfig], nodes: Nodes) -> int:
    """How many trials run at once: at most sweep.trials_at_once, and as many as find room on the nodes; at least one.

    cfg: of the set-up. Where the limits of an autoscaler are unknown there is room for all: those run whose nodes come.
    """
    most = min(len(trials), cfg.sweep.trials_at_once or len(trials))
    if nodes.types is None:
        return max(1, most)
    groups = needed(cfg, engines_shared(trials), most)
    return max(1, place(nodes.all(), groups) - (len(groups) - most))


def obstacle(cfg: RunConfig, nodes: Nodes) -> str | None:
    """Why one trial can never run on these nodes, with the numbers; None if it can, or if that cannot be known.

    A group that only a cleverer packing would fit is not refused: Ray decides.
    """
    if nodes.types is None:
        return None
    every, least = nodes.all(), fewest(cfg)
    for bundle in chain(apart(least), *phases(least)):
        if not any(_fits(bundle, node) for node in every):
            return f"one bundle of a trial is {shown(bundle)} on one node, and the largest node has {_largest(every)}"
    for name, want in resources(least).items():
        have = sum(node.get(name, 0.0) for node in every)
        if want > have + _ROUNDING:
            return f"one trial needs {want:g} {name}s, {len(every)} node(s) have {have:g}"
    return None


def _largest(nodes: Sequence[Resources]) -> str:
    return shown(max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)), default={}))


def shown(bundle: Mapping[str, float]) -> str:
    """Example: "4 CPU, 1 GPU"."""
    return ", ".join(f"{bundle[name]:g} {name}" for name in ("CPU", "GPU") if bundle.get(name)) or "nothing"


# --- which trial runs where ----------------------------------------------------------------------------------------


class Places:
    """Who is in which place. Trials are named by number; place 0 is that of the set-up, and there from the start."""

    def __init__(self, count: int, trials: int) -> None:
        """count: of places; all but the first are still to open. trials: that will ask for a place, each once."""
        self.opening = set(range(1, count))
        self._free = {0}
        self._held: dict[int, int] = {}  # trial -> place
        self._asking: list[int] = []
        self._to_come = trials

    def ask(self, trial: int) -> None:
        """A trial asks for a place. One whose process died and is started again asks again, and has its place still."""
        if trial not in self._held and trial not in self._asking:
            self._asking.append(trial)
            self._to_come -= 1
        self._deal()

    def opened(self, place: int) -> None:
        """The place has its resources, and its engines are up."""
        if place in self.opening:
            self.opening.remove(place)
            self._free.add(place)
            self._deal()

    def failed(self, place: int) -> None:
        """The place cannot be opened: the trials run in the others."""
        self.opening.discard(place)

    def leave(self, trial: int) -> None:
        """The trial has ended, or is not started again."""
        if trial in self._asking:
            self._asking.remove(trial)
        if trial in self._held:
            self._free.add(self._held.pop(trial))
            self._deal()

    def of(self, trial: int) -> int | None:
        """The place of a trial; None while it waits for one."""
        return self._held.get(trial)

    def close_surplus(self) -> list[int]:
        """Close the places that no trial will ask for, so that no node waits for nothing, or comes for nothing.

        Those that are not open yet first. The first place stays: its engines score, and may be needed after the trials.
        """
        wanted = len(self._asking) + self._to_come
        spare = len(self.opening) + len(self._free) - wanted
        closable = [*sorted(self.opening, reverse=True), *sorted(self._free - {0}, reverse=True)]
        closed = closable[: max(0, spare)]
        self.opening.difference_update(closed)
        self._free.difference_update(closed)
        return closed

    def _deal(self) -> None:
        """The longest waiting trial gets the first free place."""
        while self._asking and self._free:
            place = min(self._free)
            self._free.remove(place)
            self._held[self._asking.pop(0)] = place
