"""Who computes the parts of a pass over M0: one process, and helpers where what is left takes longer than their start.

Every part is the same whoever computes it, and lies in the cache when it is done. So a helper that dies, or never
starts, costs time alone.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray.exceptions import RayError

from introspect_ray.errors import one_line
from introspect_ray.policy import local_policy

if TYPE_CHECKING:
    from introspect_ray.training.behavior_pass import BehaviorPass, Part

WORTH = 2.0  # starts of a helper that the rest of a pass must take before helpers are started
AHEAD = 2  # parts that a helper has at a time, so that it never waits for the next one
Options = Mapping[str, Any]
_log = logging.getLogger(__name__)


def worth_helpers(seconds_per_part: float, left: int, start_s: float) -> bool:
    """Whether `left` parts take so long that helpers, which take `start_s` to start, pay."""
    return seconds_per_part * left > WORTH * start_s


def room(left: int, helpers: int, has: int) -> int:
    """How many more parts a helper that has `has` of them is given while `left` are to be done: AHEAD in all while
    there are plenty, and one near the end, so that nobody waits for one who has two."""
    return max(0, min(left, AHEAD if left > AHEAD * helpers else 1) - has)


class Team(Protocol):
    """Helpers of a pass. They are started once, if at all."""

    @property
    def busy(self) -> bool:
        """Whether any of them computes a part."""
        ...

    def start(self) -> None: ...

    def take(self, todo: deque[Part]) -> None:
        """Hand parts from the front of `todo` to those who have room for them. Never waits."""
        ...

    def back(self, *, wait: bool) -> list[tuple[Part, bool]]:
        """The parts that are done (True) or lost with their helper (False) since the last call. wait: for one of them,
        if any are being computed."""
        ...


def work_off(
    work: BehaviorPass, missing: Sequence[Part], team: Team, start_s: float, advance: Callable[[int], None]
) -> None:
    """Compute the missing parts of a pass, here and by the team. start_s: what a helper takes to start. advance: called
    with the number of cases of each part that is done."""
    todo, seconds, own, started = deque(missing), 0.0, 0, False
    while todo or team.busy:
        if todo:
            part, began = todo.popleft(), time.perf_counter()
            work.make(part)
            advance(part.cases)
            seconds, own = seconds + time.perf_counter() - began, own + 1
        for part, made in team.back(wait=not todo):
            if made:
                advance(part.cases)
            else:
                todo.append(part)
        if not started and own and worth_helpers(seconds / own, len(todo), start_s):
            started = True
            team.start()
        team.take(todo)


class PassHelper:
    """A process that computes parts."""

    def __init__(self, threads: int, policy: str, cases: list[Any], *how: Any) -> None:
        """policy: a name that every node resolves. cases: a list of one ref. how: the rest of BehaviorPass's."""
        import torch

        from introspect_ray.training.behavior_pass import BehaviorPass

        torch.set_num_threads(threads)
        self._pass = BehaviorPass(local_policy(policy), ray.get(cases[0]), *how)

    def ready(self) -> None:
        """Load M0."""
        self._pass.load()

    def make(self, part: Part) -> None:
        self._pass.make(part)


class RayTeam:
    """Helpers as Ray actors."""

    def __init__(self, options: Sequence[Options], arguments: Sequence[Any]) -> None:
        """options: Ray's, of each helper. arguments: of PassHelper."""
        self._options, self._arguments = options, arguments
        self._started: list[Any] = []
        self._ready: list[Any] = []
        self._sent: dict[Any, tuple[Any, Part | None]] = {}  # by future: the helper, and its part (None: its start)

    @property
    def busy(self) -> bool:
        return any(part for _, part in self._sent.values())

    def start(self) -> None:
        helper = ray.remote(PassHelper)
        self._started = [helper.options(**one).remote(*self._arguments) for one in self._options]
        self._sent = {one.ready.remote(): (one, None) for one in self._started}

    def take(self, todo: deque[Part]) -> None:
        for helper in self._ready:
            has = sum(one is helper and part is not None for one, part in self._sent.values())
            for _ in range(room(len(todo), len(self._ready), has)):
                part = todo.popleft()
                self._sent[helper.make.remote(part)] = helper, part

    def back(self, *, wait: bool) -> list[tuple[Part, bool]]:
        futures = [future for future, (_, part) in self._sent.items() if part or not wait]
        if not futures:
            return []
        done, _ = ray.wait(futures, num_returns=1 if wait else len(futures), timeout=None if wait else 0)
        found = []
        for future in done:
            helper, part = self._sent.pop(future)
            whole = self._ended(future, helper)
            if part is not None:
                found.append((part, whole))
            elif whole:
                self._ready.append(helper)
        return found

    def close(self) -> None:
        """End all helpers."""
        for helper in self._started:
            ray.kill(helper)

    def _ended(self, future: Any, helper: Any) -> bool:
        """Whether a call of a helper went well; one that did not is given no more parts."""
        try:
            ray.get(future)
            return True
        except RayError as error:
            _log.warning("a helper of the pass over M0 failed (%s): its parts are computed by others", one_line(error))
            self._ready = [one for one in self._ready if one is not helper]
            return False
