"""The handles of engines without Ray: who is waited for, who is replaced, and who is left out."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from introspect_ray.actors import engines as engine_handles
from introspect_ray.actors.engines import Engines
from introspect_ray.actors.trainer import check_shared_gpu
from introspect_ray.config import RolloutConfig
from introspect_ray.errors import RepeatedFailure, UserError

GONE, DEAD = ActorUnavailableError("killed", b"0" * 16), ActorDiedError()


def actor(*answers: object) -> SimpleNamespace:
    """One that answers a ping so, the last answer for ever."""
    todo = list(answers)

    async def ping() -> bool:
        given = todo.pop(0) if len(todo) > 1 else todo[0]
        if isinstance(given, Exception):
            raise given
        return bool(given)

    return SimpleNamespace(ping=SimpleNamespace(remote=ping))


def engines(monkeypatch: pytest.MonkeyPatch, *actors: SimpleNamespace, new: object = None) -> tuple[Engines, list]:
    """Engines of which each new one is `new`, and the list of the new ones."""
    made, started = Engines.__new__(Engines), []
    made.actors, made._endless, made._away, made._rollout = list(actors), False, {}, RolloutConfig(num_gpus=1)
    monkeypatch.setattr(engine_handles, "_POLL_S", 0.0)
    monkeypatch.setattr(made, "_start", lambda number: started.append(new) or new)
    return made, started


def test_an_engine_that_is_dead_for_good_is_replaced(monkeypatch):
    """Ray restarts one that was killed, and gives up one whose __init__ fails."""
    new, well = actor(True), actor(True)
    made, started = engines(monkeypatch, actor(GONE, DEAD), well, new=new)
    assert asyncio.run(made.revive()) == ["rollout actor 0 could not be started again: a new one was"]
    assert made.actors == [new, well] and started == [new]
    assert asyncio.run(made.revive()) == []


def test_a_replacement_that_cannot_start_either_ends_the_attempt(monkeypatch):
    made, started = engines(monkeypatch, actor(DEAD), new=actor(DEAD))
    with pytest.raises(ActorDiedError):
        asyncio.run(made.revive())
    assert len(started) == 1


def test_who_waits_together_replaces_once(monkeypatch):
    made, started = engines(monkeypatch, actor(DEAD), new=actor(GONE, True))

    async def two() -> None:
        await asyncio.gather(*(made.up(0, "evaluation", None, renew=True) for _ in range(2)))

    asyncio.run(two())
    assert len(started) == 1


def test_a_copy_leaves_the_dead_out_and_says_when_all_are(monkeypatch):
    """The relabeler's: an actor that it started would die with it. Recovery replaces them for the next attempt."""
    made, started = engines(monkeypatch, actor(DEAD), actor(True), actor(DEAD))
    assert [asyncio.run(made.next_up(last, "step 7", renew=False)) for last in (0, 1)] == [1, 1]
    made.actors[1] = actor(DEAD)
    with pytest.raises(RuntimeError, match="step 7: all 3 rollout actors are dead for good"):
        asyncio.run(made.next_up(0, "step 7", renew=False))
    assert started == []


def test_with_wait_for_nodes_an_engine_is_waited_for_without_end(monkeypatch):
    """Its node comes back long after the 900 s in which an engine must otherwise be back."""
    monkeypatch.setattr(engine_handles, "RESTART_S", 0.0)
    made, _ = engines(monkeypatch, actor(*[GONE] * 9, True))
    with pytest.raises(RepeatedFailure, match=r"was not back after 0 s .*wait_for_nodes=true"):
        asyncio.run(made.next_up(0, "step 7", renew=False))
    made._endless = True
    assert asyncio.run(made.next_up(0, "step 7", renew=False)) == 0


def test_who_is_waited_for_is_said_with_what_it_needs(monkeypatch):
    seen = []

    async def ping() -> bool:
        seen.extend(made.waits())
        return True

    made, _ = engines(monkeypatch, actor(True), SimpleNamespace(ping=SimpleNamespace(remote=ping)))
    began = time.time()
    asyncio.run(made.up(1, "start", None))
    (wait,) = seen
    assert wait[:2] == ("1 of 2 rollout actors", "1 CPU and 1 GPU each") and began <= wait.since <= time.time()
    assert made.waits() == []


def test_a_trainer_without_an_engine_on_its_gpu_is_refused():
    places = [("f00d" * 14, ["0"]), ("f00d" * 14, ["1"])]
    check_shared_gpu(("f00d" * 14, ["1"]), places, 3)
    with pytest.raises(
        UserError,
        match=r"training worker 3 is on GPU 2 of node f00df00d, where no engine is \(they are on 0 of f00df00d",
    ):
        check_shared_gpu(("f00d" * 14, ["2"]), places, 3)
