"""The places of a sweep's trials as an actor: opens them, hands them out, and closes those that no trial will need.

It holds the placement groups and engines of all places but the first, which is the set-up's: they end with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.trial_group import TrialGroup
from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError, one_line
from introspect_ray.runs.cluster import on_this_node
from introspect_ray.runs.kept_workers import keep_workers
from introspect_ray.runs.setup import SharedSetup, make_group
from introspect_ray.runs.slots import Places

_LOOK_S = 0.5


@dataclass(frozen=True)
class Slot:
    """A place of a trial: its resources, and the engines that serve it."""

    group: TrialGroup
    pool: RolloutPool


class TrialSlots:
    """Hands out the places. A trial that dies must be reported by `leave`: it cannot give its place back itself."""

    def __init__(self, cfg: RunConfig, first: Slot, count: int, trials: int, shared: bool) -> None:
        """cfg: of the set-up. first: its place; if its workers are kept, so are those of all places in which trials
        follow each other. trials: that will ask. shared: all trials use the first one's engines, in turns, and a place
        is one for training workers alone."""
        self._cfg, self._shared = cfg, shared
        self._places, self._follow = Places(count, trials), trials > count  # whether trials follow others in a place
        self._slots = {0: first}
        self._processes: dict[int, Any] = {}  # by trial, the actor in which it runs, or ran
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()
        self._turn, self._in_turn = asyncio.Lock(), -1
        self._notes: list[str] = []

    async def open(self) -> None:
        """Ask for the resources of all places at once, and start their engines as they come. Does not wait."""
        for place in self._places.opening:
            self._slots[place] = self._ask(place)
            self._opening[place] = asyncio.create_task(self._open(place))

    async def acquire(self, trial: int, process: Any) -> Slot:
        """A place for the trial, when there is one. process: handle of the actor in which it runs."""
        async with self._changed:
            self._processes[trial] = process
            self._places.ask(trial)
            self._close_surplus()
            await self._changed.wait_for(lambda: self._places.of(trial) is not None)
            return self._slots[self._places.of(trial) or 0]

    async def leave(self, trial: int) -> None:
        """The trial has ended, in whatever way. Saying so twice does no harm."""
        self.end_turn(trial)
        async with self._changed:
            self._places.leave(trial)
            self._close_surplus()
            self._changed.notify_all()

    async def leave_when_dead(self, trial: int) -> None:
        """The trial is stopped from outside: its place is free when its process has gone, and its workers with it."""
        process = self._processes.get(trial)
        with suppress(RayActorError):
            while process is not None and self._places.of(trial) is not None:
                await process.__ray_ready__.remote()
                await asyncio.sleep(_LOOK_S)
        await self.leave(trial)

    async def take_turn(self, trial: int) -> None:
        """Wait until no other trial scores on the shared engines: each would load its policy again and again."""
        if self._in_turn != trial:  # else its process died in its turn, and it was started again
            await self._turn.acquire()
            self._in_turn = trial
        if self._places.of(trial) is None:  # it died while it waited
            self.end_turn(trial)

    def end_turn(self, trial: int) -> None:
        """The next trial may score."""
        if self._in_turn == trial:
            self._in_turn = -1
            self._turn.release()

    async def notes(self) -> list[str]:
        """A line on every place that could not be opened."""
        return self._notes

    def _ask(self, place: int) -> Slot:
        group, first = make_group(self._cfg, engines=not self._shared), self._slots[0]
        if first.group.kept is not None and self._follow:
            group = replace(group, kept=keep_workers())
        return Slot(group, first.pool if self._shared else first.pool.another(group.engine_places()))

    async def _open(self, place: int) -> None:
        slot = self._slots[place]
        try:
            await slot.group.ready()
            if not self._shared:
                await slot.pool.up()
        except (RayError, UserError) as error:  # the trials run in the other places
            self._notes.append(f"place {place + 1} for trials cannot be used: {one_line(error)}")
            slot.group.remove()
            self._places.failed(place)
            return
        async with self._changed:
            self._places.opened(place)
            self._changed.notify_all()

    def _close_surplus(self) -> None:
        for place in self._places.close_surplus():
            if place in self._opening:
                self._opening.pop(place).cancel()
            self._slots.pop(place).group.remove()  # its engines end with it


TrialSlotsActor = ray.remote(num_cpus=0)(TrialSlots)


def open_slots(cfg: RunConfig, setup: SharedSetup, count: int, trials: int, shared: bool) -> Any:
    """The handle of the TrialSlots of a sweep; None where all trials run one after another in the set-up's place, and
    each ends before the next one starts. cfg: of the set-up."""
    if count == 1 and cfg.sweep.scheduler == "all":
        return None
    made = TrialSlotsActor.options(scheduling_strategy=on_this_node())
    slots = made.remote(cfg, Slot(setup.group, setup.pool), count, trials, shared)
    ray.get(slots.open.remote())
    return slots


@contextmanager
def place_for(trial: int, setup: SharedSetup, slots: Any, shared: bool) -> Iterator[SharedSetup]:
    """The set-up as one trial sees it: with the resources and engines of its place, for which it waits.

    slots: handle of a TrialSlots, or None."""
    if slots is None:
        yield setup
        return
    process = ray.get_runtime_context().current_actor
    slot: Slot = ray.get(slots.acquire.remote(trial, process))
    try:
        yield replace(setup, pool=slot.pool, group=slot.group, turns=Turns(slots, trial) if shared else None)
    finally:
        ray.get(slots.leave.remote(trial))


@dataclass(frozen=True)
class Turns:
    """Scoring on engines that several trials share, one trial at a time."""

    slots: Any  # handle of a TrialSlots
    trial: int

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While the body runs no other trial scores."""
        ray.get(self.slots.take_turn.remote(self.trial))
        try:
            yield
        finally:
            ray.get(self.slots.end_turn.remote(self.trial))
