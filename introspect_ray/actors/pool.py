"""A pool of rollout actors: requests of fixed groups go out, futures come back, failed requests are sent again.

The group alone decides what is computed together, so it does not matter which engine answers, or how often.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayActorError, RayTaskError

from introspect_ray.actors.rollout import EngineSpec, Request, RolloutResult, RolloutWorker, Serving, Task
from introspect_ray.actors.weight_sync import verify
from introspect_ray.config import RunConfig
from introspect_ray.engines.protocol import PromptTokens
from introspect_ray.errors import AlarmError, RepeatedFailure, UserError
from introspect_ray.judges import JudgeReport, check_unjudged
from introspect_ray.records import BehaviorPair, Delivery, Message
from introspect_ray.schedule import deal

RESTART_S = 900.0  # for a dead engine to come back: a large policy, on a node that an autoscaler has to start
ANSWER_S = 60.0  # for an engine to finish what it was asked before and to say whether it is usable
_POLL_S = 1.0
_FINAL = (AlarmError, UserError, ValueError, ObjectLostError)  # another engine would fail in the same way


@dataclass(frozen=True)
class PendingRequest:
    """A request that was sent, and the future of its RolloutResult."""

    request: Request
    future: Any


class RolloutPool:
    """Handles of equal rollout actors. Picklable: the trainer's rank 0, the relabeler and the driver hold copies.

    Cases are cut into groups of `group_size` in the given order, and the groups are dealt to the actors in turn: what
    is computed together does not depend on the size of the pool. Each step begins at another actor, so that at lag >= 1
    even steps of a single group use the whole pool.
    """

    def __init__(self, cfg: RunConfig, spec: EngineSpec, cases: Sequence[Any], places: Sequence[Any] = ()) -> None:
        """cases: refs of CaseTables, which Ray keeps once per node. places: a scheduling strategy per engine; (): where
        there is room."""
        self._cfg, self._spec = cfg, spec
        self._size, self._limit = cfg.rollout.group_size, cfg.train.max_failures
        self.prompt_tokens = PromptTokens()  # of all label_now and explain_now so far
        self.judging = spec.judging  # who judges free responses; its identity is the Provenance.judge of their labels
        self.judged: JudgeReport | None = None  # on all label_now since the last take_judged
        self._cases = list(cases)  # refs in a list, which Ray passes unresolved: each engine resolves them once
        rollout = cfg.rollout
        actor: Any = ray.remote(num_cpus=rollout.num_cpus, num_gpus=rollout.num_gpus, max_restarts=-1)(RolloutWorker)
        chosen = places or ["DEFAULT"] * rollout.num_actors
        self.actors: list[Any] = [actor.options(scheduling_strategy=one).remote(rollout, spec) for one in chosen]

    def another(self, places: Sequence[Any]) -> RolloutPool:
        """New engines like these at other places, which serve M0."""
        return RolloutPool(self._cfg, self._spec, self._cases, places)

    def without_engines(self) -> RolloutPool:
        """This pool for a training that asks no engine: weights are not sent, and no engine is looked after."""
        made = copy(self)
        made.actors = []
        return made

    def wait(self) -> None:
        """Until every engine is up. Raises RayActorError for one that cannot start, UserError where its node lacks the
        policy or vLLM."""
        asyncio.run(self._all_up())

    def revive(self) -> list[str]:
        """Until every engine is up and usable; returns a line on each that had to be restarted for it.

        A training that died can leave an engine waiting in a collective, or half updated. Raises RepeatedFailure for an
        engine that does not come back, RayActorError for one that cannot start.
        """
        return asyncio.run(self._revived())

    async def up(self) -> None:
        """The same as `wait`, for an actor that has its own loop."""
        await self._all_up()

    def load_weights(self, packed_ref: Any) -> list[Any]:
        """Futures of one Delivery per actor."""
        return [actor.load_weights.remote(packed_ref) for actor in self.actors]

    def label(self, case_ids: Sequence[str], serving: Serving, first: int = 0) -> list[PendingRequest]:
        """Request pairs, one group after the other in the order of the cases. first: the actor of the first group."""
        return [self._send(request) for request in self._groups("label", case_ids, serving, first)]

    def label_now(self, case_ids: Sequence[str], serving: Serving) -> list[BehaviorPair]:
        """The pairs of cases. Raises AlarmError where the judge gave no verdict on too many free responses.

        A set may be labelled in several calls: the share is that of all of them since the last take_judged.
        """
        results = self._results(self.label(case_ids, serving))
        reports = [result.judged for result in results if result.judged]
        if reports and self.judging:
            found = reduce(add, reports)
            self.judged = self.judged + found if self.judged else found
            check_unjudged(self.judged, self.judging.max_unjudged)
        return _answers(results)

    def take_judged(self) -> JudgeReport | None:
        """What the judges made of all label_now since the last call of this; None without free responses."""
        taken, self.judged = self.judged, None
        return taken

    def explain_now(self, case_ids: Sequence[str], max_tokens: int, serving: Serving) -> list[tuple[int, ...]]:
        requests = self._groups("explain", case_ids, serving, 0, max_tokens)
        return _answers(self._results([self._send(request) for request in requests]))

    def chat_now(self, chats: Sequence[tuple[Message, ...]], max_tokens: int) -> list[str]:
        """One greedy answer per chat, in order, of a pool whose actors serve a judging policy (EngineSpec.chats)."""
        dealt = deal(list(chats), self._size, len(self.actors), 0)
        requests = [Request("chat", (), Serving(), home, max_tokens, list(group)) for home, group in dealt]
        return _answers(self._results([self._send(request) for request in requests], "judging"))

    async def collect(
        self, sent: Sequence[PendingRequest], where: str, note: Callable[[str], None]
    ) -> list[RolloutResult]:
        """The results in order, each made with verified weights; a request whose engine died is sent again.

        where: begins the message of an error. note: called with a line on every request that is sent again. Raises
        WeightSyncError, and RepeatedFailure when a request failed `train.max_failures` times in a row.
        """
        return list(await asyncio.gather(*(self._result(pending, where, note) for pending in sent)))

    def names(self) -> dict[str, str]:
        """The actors' names in messages, by Ray's actor id."""
        return {actor._actor_id.hex(): f"rollout actor {number}" for number, actor in enumerate(self.actors)}

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def _results(self, sent: Sequence[PendingRequest], where: str = "evaluation") -> list[RolloutResult]:
        """Waits for all of them; adds up their prompt tokens."""

        def note(line: str) -> None:
            print(f"warning: {line}", file=sys.stderr, flush=True)

        results = asyncio.run(self.collect(sent, where, note))
        self.prompt_tokens = sum((result.prompt_tokens for result in results), self.prompt_tokens)
        return results

    def _send(self, request: Request, again: int = 0) -> PendingRequest:
        return PendingRequest(request, self._actor(request, again).answer.remote(request, self._cases))

    def _actor(self, request: Request, again: int) -> Any:
        return self.actors[(request.home + again) % len(self.actors)]

    async def _result(self, pending: PendingRequest, where: str, note: Callable[[str], None]) -> RolloutResult:
        request, failures = pending.request, 0
        while True:
            try:
                result: RolloutResult = await pending.future
                if request.serving.expected is not None:
                    verify(request.serving.expected, [result.receipt])
                return result
            except (RayActorError, RayTaskError) as error:
                failed = reason(error)
            failures += 1
            line = f"{where}: rollout actor {(request.home + failures - 1) % len(self.actors)} failed at: {request}"
            if failures >= self._limit:
                raise RepeatedFailure(
                    f"{line}, {failures} time(s) in a row, the last time with: {failed}; if that is memory, lower "
                    "rollout.group_size or rollout.gpu_memory_utilization; go on with --resume"
                ) from None
            note(f"{line} ({failed}); asked again")
            with suppress(ActorDiedError):  # it cannot start: the request fails and goes to the next actor
                await self._up(self._actor(request, failures), where, RESTART_S)
            pending = self._send(request, failures)

    async def _all_up(self) -> None:
        """Waits without a limit: Ray itself reports what it waits for, and an autoscaler may take long."""
        await asyncio.gather(*(self._up(actor, "start", None) for actor in self.actors))

    async def _revived(self) -> list[str]:
        found = await asyncio.gather(*map(self._fault, self.actors))
        notes = []
        for number, (actor, fault) in enumerate(zip(self.actors, found, strict=True)):
            if fault:
                ray.kill(actor, no_restart=False)
                notes.append(f"rollout actor {number} {fault}: started afresh")
        await asyncio.gather(*(self._up(actor, "before an attempt", RESTART_S) for actor in self.actors))
        return notes

    async def _fault(self, actor: Any) -> str | None:
        """Why an engine has to be restarted; None if it is usable, or being restarted already."""
        try:
            usable = await asyncio.wait_for(actor.ping.remote(), ANSWER_S)
        except TimeoutError:
            return f"did not answer within {ANSWER_S:g} s"
        except ActorUnavailableError:
            return None
        return None if usable else "cannot be used any more (an unfinished weight update, or an error)"

    async def _up(self, actor: Any, where: str, patience_s: float | None) -> None:
        """Until the engine answers that it is usable. Raises RepeatedFailure if it does not within `patience_s`."""
        until = None if patience_s is None else time.monotonic() + patience_s
        while True:
            left = None if until is None else until - time.monotonic()
            try:
                if await asyncio.wait_for(actor.ping.remote(), left):
                    return
            except (ActorUnavailableError, TimeoutError) as error:
                if left is not None and left <= 0:
                    raise RepeatedFailure(
                        f"{where}: a rollout actor died and was not back after {patience_s:g} s ({reason(error)}): "
                        "look for room in the cluster and at Ray's logs, then go on with --resume"
                    ) from None
            await asyncio.sleep(_POLL_S)

    def _groups(
        self, task: Task, case_ids: Sequence[str], serving: Serving, first: int, max_tokens: int = 1
    ) -> list[Request]:
        dealt = deal(list(case_ids), self._size, len(self.actors), first)
        return [Request(task, list(group), serving, home, max_tokens) for home, group in dealt]


def _answers(results: Sequence[RolloutResult]) -> list[Any]:
    return [answer for result in results for answer in result.answers]


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


async def receipts(deliveries: Sequence[Any]) -> list[Delivery]:
    """The receipts of a version that arrived. An engine that died has none: it sends one with its next answer."""
    got = await asyncio.gather(*deliveries, return_exceptions=True)
    for error in got:
        if isinstance(error, RayActorError | RayTaskError):
            reason(error)
        elif isinstance(error, BaseException):
            raise error
    return [receipt for receipt in got if isinstance(receipt, Delivery)]
