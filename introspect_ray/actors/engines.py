"""The handles of a pool's rollout actors: who is up, who is waited for, and who is replaced.

Ray restarts an engine that dies, on another node if need be. One that then fails in its __init__ is dead for good to
Ray, and a new actor takes its place. A replacement lives as long as the process that started it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError

from introspect_ray.actors.rollout import EngineSpec, RolloutWorker
from introspect_ray.config import RunConfig
from introspect_ray.errors import AlarmError, RepeatedFailure, UserError
from introspect_ray.records import Wait

RESTART_S = 900.0  # for a dead engine to come back, unless wait_for_nodes says that it may take any time
ANSWER_S = 60.0  # for an engine to finish what it was asked before and to say whether it is usable
_POLL_S = 1.0
_FINAL = (AlarmError, UserError, ValueError, ObjectLostError)  # another engine would fail in the same way


class Engines:
    """Equal rollout actors. Picklable; a copy does not see who is replaced in another process."""

    def __init__(self, cfg: RunConfig, spec: EngineSpec, places: Sequence[Any] = ()) -> None:
        """cfg.rollout and `spec` are what each of them is started with. places: a scheduling strategy per engine; ():
        where there is room."""
        self._rollout, self._endless = cfg.rollout, cfg.wait_for_nodes
        self._spec = replace(spec, deterministic=cfg.deterministic)
        self._places = list(places) or ["DEFAULT"] * cfg.rollout.num_actors
        self._away: dict[int, float] = {}  # who is waited for, and since when
        self.actors: list[Any] = [self._start(number) for number in range(len(self._places))]

    def none(self) -> Engines:
        """The same without engines: nobody is looked after."""
        made = copy(self)
        made.actors = []
        return made

    def _start(self, number: int) -> Any:
        needs = {"num_cpus": self._rollout.num_cpus, "num_gpus": self._rollout.num_gpus}
        actor: Any = ray.remote(**needs, max_restarts=-1)(RolloutWorker)
        return actor.options(scheduling_strategy=self._places[number]).remote(self._rollout, self._spec)

    def number(self, number: int) -> int:
        """Numbers go round."""
        return number % len(self.actors)

    def names(self) -> dict[str, str]:
        """The actors' names in messages, by Ray's actor id."""
        return {actor._actor_id.hex(): f"rollout actor {number}" for number, actor in enumerate(self.actors)}

    def waits(self) -> list[Wait]:
        """Those that are being waited for, as one record."""
        away = dict(self._away)
        if not away:
            return []
        each = f"{self._rollout.num_cpus:g} CPU and {self._rollout.num_gpus:g} GPU each"
        return [Wait(f"{len(away)} of {len(self.actors)} rollout actors", each, min(away.values()))]

    def places(self) -> list[tuple[str, list[str]]]:
        """Each engine's node and GPUs, by their ids. All engines are up."""
        found: list[tuple[str, list[str]]] = ray.get([actor.__ray_call__.remote(place) for actor in self.actors])
        return found

    async def start(self) -> None:
        """Until all are up. Waits without a limit: an autoscaler may take long."""
        await asyncio.gather(*(self.up(number, "start", None) for number in range(len(self.actors))))

    async def revive(self) -> list[str]:
        """Until all are up and usable; a line on each that was started afresh for it."""
        return list(filter(None, await asyncio.gather(*map(self._revive, range(len(self.actors))))))

    async def next_up(self, last: int, where: str, renew: bool) -> int:
        """The next engine after `last` that is up, or comes up. Raises RuntimeError if all are dead for good."""
        for number in (self.number(last + 1 + i) for i in range(len(self.actors))):
            try:
                await self.up(number, where, self._patience(), renew)
                return number
            except ActorDiedError:
                continue
        raise RuntimeError(f"{where}: all {len(self.actors)} rollout actors are dead for good")

    async def up(self, number: int, where: str, patience_s: float | None, renew: bool = False) -> None:
        """Until an engine answers that it is usable.

        Raises RepeatedFailure if it does not within `patience_s`, and ActorDiedError if it is dead for good. With
        `renew` a new actor takes its place then, once.
        """
        until = None if patience_s is None else time.monotonic() + patience_s
        self._away.setdefault(number, time.time())
        try:
            while True:
                left, asked = None if until is None else until - time.monotonic(), self.actors[number]
                try:
                    if await asyncio.wait_for(asked.ping.remote(), left):
                        return
                except ActorDiedError:
                    if asked is self.actors[number]:  # nobody else who waits for it has replaced it meanwhile
                        if not renew:
                            raise
                        renew, self.actors[number] = False, self._start(number)
                except (ActorUnavailableError, TimeoutError) as error:
                    if left is not None and left <= 0:
                        raise RepeatedFailure(
                            f"{where}: a rollout actor died and was not back after {patience_s:g} s ({reason(error)}): "
                            "look for room in the cluster and at Ray's logs, and go on with --resume, or set "
                            "wait_for_nodes=true where nodes may take longer"
                        ) from None
                await asyncio.sleep(_POLL_S)
        finally:
            self._away.pop(number, None)

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def _patience(self) -> float | None:
        return None if self._endless else RESTART_S

    async def _revive(self, number: int) -> str | None:
        fault, before = await self._fault(number), self.actors[number]
        if fault:
            ray.kill(before, no_restart=False)
        await self.up(number, "before an attempt", self._patience(), renew=True)
        if self.actors[number] is not before:
            return f"rollout actor {number} could not be started again: a new one was"
        return f"rollout actor {number} {fault}: started afresh" if fault else None

    async def _fault(self, number: int) -> str | None:
        """Why an engine has to be restarted; None if it is usable, being restarted already, or dead for good."""
        try:
            usable = await asyncio.wait_for(self.actors[number].ping.remote(), ANSWER_S)
        except TimeoutError:
            return f"did not answer within {ANSWER_S:g} s"
        except (ActorUnavailableError, ActorDiedError):
            return None
        return None if usable else "cannot be used any more (an unfinished weight update, or an error)"


def place(_: Any = None) -> tuple[str, list[str]]:
    """The node and the GPUs of the process that calls it, by their ids."""
    context = ray.get_runtime_context()
    return context.get_node_id(), list(context.get_accelerator_ids().get("GPU", []))


def reason(error: BaseException) -> str:
    """One line on why a part failed. An error that another try would repeat is raised (of an actor's, its cause)."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, _FINAL):
        raise cause from None
    if isinstance(cause, ActorUnavailableError):
        return "its process died"
    lines = str(cause).strip().splitlines() or ["no message"]
    said = lines[-1 if isinstance(cause, ActorDiedError) else 0]  # the last line says what ended an actor for good
    return f"{type(cause).__name__}: {said.strip()[:200]}"
