"""A pool of rollout actors: requests of fixed groups go out, futures come back, failed requests are sent again.

The group alone decides what is computed together, so it does not matter which engine answers, or how often.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from introspect_ray.actors.engines import Engines, reason
from introspect_ray.actors.rollout import Assessed, EngineSpec, Request, RolloutResult, Serving, Task
from introspect_ray.actors.status import activity
from introspect_ray.actors.weight_sync import verify
from introspect_ray.cases.answers import Tokens
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import engines_rest
from introspect_ray.engines.protocol import PromptTokens
from introspect_ray.errors import RepeatedFailure
from introspect_ray.judges import JudgeReport, check_unjudged
from introspect_ray.records import BehaviorPair, Delivery, Message
from introspect_ray.schedule import deal, step_group


@dataclass(frozen=True)
class PendingRequest:
    """A request that was sent, and the future of its RolloutResult."""

    request: Request
    future: Any


class RolloutPool:
    """Handles of equal rollout actors. Picklable: the trainer's rank 0, the relabeler and the driver hold copies.

    Cases are cut into groups in the given order, and the groups are dealt to the actors in turn: what is computed
    together does not depend on who computes it, or how often. A step begins at the actor after the last one of the step
    before, so that at lag >= 1 even steps of a single group use the whole pool.
    """

    board: Any = None  # handle of a StatusBoard, which hears how far long requests are
    policy = "policy"  # its name there
    _advance: Callable[[int], None] | None = None  # within `reporting`: takes the number of cases that were answered

    def __init__(self, cfg: RunConfig, spec: EngineSpec, cases: Sequence[Any], places: Sequence[Any] = ()) -> None:
        """cases: refs of CaseTables, which Ray keeps once per node. places: a scheduling strategy per engine; (): where
        there is room."""
        self._cfg, self._spec = cfg, spec
        self._size, self._step_size, self._limit = cfg.rollout.bulk_group, step_group(cfg), cfg.train.max_failures
        self._rest, self._walks = engines_rest(cfg), cfg.eval.decode == "trie"
        self.policy = spec.policy
        self.prompt_tokens = PromptTokens()  # of all label_now and explain_now so far
        self.judging = spec.judging  # who judges free responses; its identity is the Provenance.judge of their labels
        self.judged: JudgeReport | None = None  # on all label_now since the last take_judged
        self._cases = list(cases)  # refs in a list, which Ray passes unresolved: each engine resolves them once
        self.engines = Engines(cfg, spec, places)

    @property
    def actors(self) -> list[Any]:
        return self.engines.actors

    def another(self, places: Sequence[Any]) -> RolloutPool:
        """New engines like these at other places, which serve M0."""
        return RolloutPool(self._cfg, self._spec, self._cases, places)

    def without_engines(self) -> RolloutPool:
        """This pool for a training that asks no engine: weights are not sent, and no engine is looked after."""
        made = copy(self)
        made.engines = self.engines.none()
        return made

    def wait(self) -> None:
        """Until every engine is up. Raises RayActorError for one that cannot start, UserError where its node lacks the
        policy or vLLM."""
        asyncio.run(self.engines.start())
        if self._cfg.deterministic:
            for line in set(ray.get([actor.engine.remote("shortfall") for actor in self.actors])) - {None}:
                print(f"warning: deterministic=true: {line}", file=sys.stderr, flush=True)

    def revive(self) -> list[str]:
        """Until every engine is up and usable; returns a line on each that had to be restarted for it.

        A training that died can leave an engine waiting in a collective, or half updated. Raises RepeatedFailure for an
        engine that does not come back in time, ActorDiedError for one whose replacement cannot start either.
        """
        return asyncio.run(self.engines.revive())

    async def up(self) -> None:
        """The same as `wait`, for an actor that has its own loop."""
        await self.engines.start()

    @contextmanager
    def reporting(self, what: str, cases: int) -> Iterator[None]:
        """Tell the status board how many of `cases` are answered while the body asks for them. Within another one this
        does nothing: its cases are those of the outer one."""
        if self._advance is not None:
            yield
            return
        with activity(self.board, f"{what} of {self.policy}", cases, "case") as self._advance:
            try:
                yield
            finally:
                self._advance = None

    def load_weights(self, packed_ref: Any) -> list[Any]:
        """Futures of one Delivery per actor."""
        return [actor.load_weights.remote(packed_ref) for actor in self.actors]

    def label(self, case_ids: Sequence[str], serving: Serving, step: int = 0) -> list[PendingRequest]:
        """Request the pairs of a step, one group after the other in the order of the cases."""
        first = step * -(-len(case_ids) // self._step_size)  # the actor after the last one of the step before
        requests = self._groups("label", case_ids, serving, first, self._step_size)
        return [self._send(request) for request in (at_rest(requests, len(self.actors)) if self._rest else requests)]

    def ask(self, task: Task, case_ids: Sequence[str], serving: Serving, max_tokens: int = 1) -> list[PendingRequest]:
        """Send requests of groups that do not depend on a step; see `collect`."""
        return [self._send(one) for one in self._groups(task, case_ids, serving, 0, self._size, max_tokens)]

    def label_now(self, case_ids: Sequence[str], serving: Serving) -> list[BehaviorPair]:
        """The pairs of cases. Raises AlarmError where the judge gave no verdict on too many free responses.

        A set may be labelled in several calls: the share is that of all of them since the last take_judged.
        """
        with self.reporting(f"labels by version {serving.version}", len(case_ids)):
            results = self._results(self.ask("label", case_ids, serving))
        self._count_verdicts(results)
        return _answers(results)

    def take_judged(self) -> JudgeReport | None:
        """What the judges made of all label_now since the last call of this; None without free responses."""
        taken, self.judged = self.judged, None
        return taken

    def explain_now(self, case_ids: Sequence[str], max_tokens: int, serving: Serving) -> list[Tokens]:
        """The explanations of cases as eval.decode says. max_tokens: of one that is generated freely."""
        with self.reporting(f"explanations by version {serving.version}", len(case_ids)):
            task: Task = "walk" if self._walks else "explain"
            return _answers(self._results(self.ask(task, case_ids, serving, max_tokens)))

    def assess_now(
        self, case_ids: Sequence[str], max_tokens: int, serving: Serving
    ) -> tuple[list[BehaviorPair], list[Tokens]]:
        """`label_now` and `explain_now` of the same cases. Raises as label_now.

        eval.decode=free: one after the other, each with a prefix cache of its own. trie: one request per group, whose
        x, x∖C and q share the engine's prefix cache.
        """
        if not self._walks:
            return self.label_now(case_ids, serving), self.explain_now(case_ids, max_tokens, serving)
        with self.reporting(f"labels and explanations by version {serving.version}", len(case_ids)):
            results = self._results(self.ask("assess", case_ids, serving))
        self._count_verdicts(results)
        return assessed(results)

    def ask_both(self, case_ids: Sequence[str], max_tokens: int, serving: Serving) -> list[PendingRequest]:
        """Send the requests of `assess_now` without waiting; `assessed` takes their results apart."""
        if self._walks:
            return self.ask("assess", case_ids, serving)
        return [*self.ask("label", case_ids, serving), *self.ask("explain", case_ids, serving, max_tokens)]

    def chat_now(self, chats: Sequence[tuple[Message, ...]], max_tokens: int) -> list[str]:
        """One greedy answer per chat, in order, of a pool whose actors serve a judging policy (EngineSpec.chats)."""
        dealt = deal(list(chats), self._size, len(self.actors), 0)
        requests = [Request("chat", (), Serving(), home, max_tokens, list(group)) for home, group in dealt]
        return _answers(self._results([self._send(request) for request in requests], "judging"))

    async def collect(
        self, sent: Sequence[PendingRequest], where: str, note: Callable[[str], None], *, renew: bool = False
    ) -> list[RolloutResult]:
        """The results in order, each made with verified weights; a request whose engine died is sent again.

        where: begins the message of an error. note: called with a line on every request that is sent again. renew:
        replace engines that are dead for good, where this process lives as long as the pool. Raises WeightSyncError,
        RepeatedFailure when a request failed `train.max_failures` times in a row, and RuntimeError when all engines are
        dead for good.
        """
        return list(await asyncio.gather(*(self._result(pending, where, note, renew) for pending in sent)))

    def close(self) -> None:
        self.engines.close()

    def _count_verdicts(self, results: Sequence[RolloutResult]) -> None:
        reports = [result.judged for result in results if result.judged]
        if reports and self.judging:
            found = reduce(add, reports)
            self.judged = self.judged + found if self.judged else found
            check_unjudged(self.judged, self.judging.max_unjudged)

    def _results(self, sent: Sequence[PendingRequest], where: str = "evaluation") -> list[RolloutResult]:
        """Waits for all of them; adds up their prompt tokens."""

        def note(line: str) -> None:
            print(f"warning: {line}", file=sys.stderr, flush=True)

        results = asyncio.run(self.collect(sent, where, note, renew=True))
        self.prompt_tokens = sum((result.prompt_tokens for result in results), self.prompt_tokens)
        return results

    def _send(self, request: Request, number: int | None = None) -> PendingRequest:
        actor = self.actors[self.engines.number(request.home if number is None else number)]
        return PendingRequest(request, actor.answer.remote(request, self._cases))

    async def _result(
        self, pending: PendingRequest, where: str, note: Callable[[str], None], renew: bool
    ) -> RolloutResult:
        request, asked, failures = pending.request, self.engines.number(pending.request.home), 0
        while True:
            try:
                result: RolloutResult = await pending.future
                if request.serving.expected is not None:
                    verify(request.serving.expected, [result.receipt])
                if self._advance is not None:
                    self._advance(len(result.answers))
                return result
            except (RayActorError, RayTaskError) as error:
                failed = reason(error)
            failures += 1
            line = f"{where}: rollout actor {asked} failed at: {request}"
            if failures >= self._limit:
                raise RepeatedFailure(
                    f"{line}, {failures} time(s) in a row, the last time with: {failed}; if that is memory, lower "
                    "rollout.group_size or rollout.gpu_memory_utilization; go on with --resume"
                ) from None
            note(f"{line} ({failed}); asked again")
            asked = await self.engines.next_up(asked, where, renew)
            pending = self._send(request, asked)

    def _groups(
        self, task: Task, case_ids: Sequence[str], serving: Serving, first: int, size: int, max_tokens: int = 1
    ) -> list[Request]:
        dealt = deal(list(case_ids), size, len(self.actors), first)
        return [Request(task, list(group), serving, home, max_tokens) for home, group in dealt]


def at_rest(requests: Sequence[Request], engines: int) -> list[Request]:
    """The requests of a turn after which every engine rests: the last one of each says so, and one that has nothing to
    do is sent an empty one. So a turn's answers are not all there before all engines rest."""
    last = {request.home: number for number, request in enumerate(requests)}
    marked = [replace(request, rest=last[request.home] == number) for number, request in enumerate(requests)]
    idle = [number for number in range(engines) if number not in last]
    return [*marked, *(replace(requests[0], case_ids=[], home=number, rest=True) for number in idle if requests)]


def assessed(results: Sequence[RolloutResult]) -> tuple[list[BehaviorPair], list[Tokens]]:
    """The pairs and the explanations in the results of `RolloutPool.ask_both`, each in the order of the cases."""
    answers = _answers(results)
    both = [answer for answer in answers if isinstance(answer, Assessed)]
    if both:
        return [one.pair for one in both], [one.said for one in both]
    pairs = [answer for answer in answers if isinstance(answer, BehaviorPair)]
    return pairs, [answer for answer in answers if not isinstance(answer, BehaviorPair)]


def _answers(results: Sequence[RolloutResult]) -> list[Any]:
    return [answer for result in results for answer in result.answers]


async def receipts(deliveries: Sequence[Any]) -> list[Delivery]:
    """The receipts of a version that arrived. An engine that died has none: it sends one with its next answer."""
    got = await asyncio.gather(*deliveries, return_exceptions=True)
    for error in got:
        if isinstance(error, RayActorError | RayTaskError):
            reason(error)
        elif isinstance(error, BaseException):
            raise error
    return [receipt for receipt in got if isinstance(receipt, Delivery)]
