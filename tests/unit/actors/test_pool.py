"""The pool of rollout actors without Ray: which requests are sent again, to whom, and when the run stops."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError

from introspect_ray.actors import engines as engine_handles
from introspect_ray.actors.engines import Engines
from introspect_ray.actors.pool import RolloutPool, at_rest, receipts
from introspect_ray.actors.rollout import EngineSpec, Request, RolloutResult, RolloutWorker, Serving
from introspect_ray.actors.weight_sync import Expected, Tolerance, WeightSyncError
from introspect_ray.config import RolloutConfig
from introspect_ray.engines.protocol import PromptTokens
from introspect_ray.errors import AlarmError, RepeatedFailure, UserError, one_line
from introspect_ray.judges import JudgeReport
from introspect_ray.records import Delivery


def task_error(cause: Exception) -> RayTaskError:
    """As an actor's exception reaches its caller."""
    return RayTaskError("method", "traceback", cause).as_instanceof_cause()


GOOD = Delivery(3, {"model.layers.0": "abc"}, (-0.1, -2.0), {}, 30)
SERVING = Serving(3, Expected(3, GOOD.fingerprints, (-0.1, -2.0), Tolerance(2e-3, 2e-3)), [None])
REQUEST = Request("label", ["c1", "c2"], SERVING, home=1)


def pool(*answers: object) -> tuple[RolloutPool, list[str]]:
    """Two engines that give these answers, in the order they are asked; the names of those asked."""
    todo, asked = list(answers), []

    def actor(name: str) -> SimpleNamespace:
        async def answer(*_: object) -> RolloutResult:
            asked.append(name)
            given = todo.pop(0)
            if isinstance(given, Exception):
                raise given
            return RolloutResult([name], given, 0.0, 0.0, PromptTokens(40, 30))

        async def ping() -> bool:
            return True

        return SimpleNamespace(answer=SimpleNamespace(remote=answer), ping=SimpleNamespace(remote=ping))

    made = RolloutPool.__new__(RolloutPool)
    made.engines, made._limit, made._cases = engines(actor("a"), actor("b")), 3, []
    return made, asked


def engines(*actors: SimpleNamespace) -> Engines:
    """Handles of actors that run already."""
    made = Engines.__new__(Engines)
    made.actors, made._endless, made._away = list(actors), False, {}
    made._rollout, made._spec = RolloutConfig(), None
    return made


def collect(made: RolloutPool, notes: list[str]) -> list[RolloutResult]:
    async def ask() -> list[RolloutResult]:
        return await made.collect([made._send(REQUEST)], "step 7", notes.append)

    return asyncio.run(ask())


def test_an_engine_that_its_node_cannot_start_says_why_in_one_line():
    """Whatever it is asked: of an actor that raises in its __init__ Ray would keep a traceback as text."""
    worker = RolloutWorker(RolloutConfig(engine="transformers"), EngineSpec("/nowhere/policy", 64, "full", 1, 0))
    calls = (worker.ping, lambda: worker.answer(REQUEST, []), lambda: worker.load_weights(None))
    for call in (*calls, lambda: worker.engine("close")):
        with pytest.raises(
            UserError, match=r"'/nowhere/policy': there is no such folder.* \(a rollout actor, on node "
        ):
            call()

    async def ping() -> None:
        try:
            worker.ping()
        except UserError as error:
            raise task_error(error) from None

    made, _ = pool()
    made.engines = engines(SimpleNamespace(ping=SimpleNamespace(remote=ping)))
    with pytest.raises(UserError) as caught:
        made.wait()
    assert one_line(caught.value).startswith("policy '/nowhere/policy': there is no such folder")


GONE = ActorUnavailableError("killed", b"0" * 16)


def test_a_group_goes_to_the_next_engine_until_one_answers():
    made, asked = pool(GONE, task_error(RuntimeError("out of memory")), GOOD)
    notes: list[str] = []
    (answer,) = collect(made, notes)
    assert (asked, answer.answers) == (["b", "a", "b"], ["b"])
    assert [note.split(" (")[0] for note in notes] == [
        "step 7: rollout actor 1 failed at: label 2 cases from 'c1' on version 3",
        "step 7: rollout actor 0 failed at: label 2 cases from 'c1' on version 3",
    ]
    assert "(its process died)" in notes[0] and "(RuntimeError: out of memory)" in notes[1]


def test_a_group_that_fails_three_times_stops_the_run():
    made, asked = pool(GONE, ActorDiedError(), task_error(RuntimeError("out of memory")))
    with pytest.raises(RepeatedFailure, match=r"^step 7: rollout actor 1 failed.*3 time.*RuntimeError: out of memory"):
        collect(made, [])
    assert len(asked) == 3


@pytest.mark.parametrize(
    "error", [UserError("bad"), ValueError("too long"), AlarmError("bound"), ObjectLostError("ab", None, "")]
)
def test_what_another_engine_cannot_mend_is_not_asked_again(error):
    made, asked = pool(task_error(error))
    with pytest.raises(type(error)):
        collect(made, [])
    assert len(asked) == 1


@pytest.mark.parametrize(
    "receipt",
    [Delivery(3, {"model.layers.0": "abd"}, GOOD.probe, {}, 0), Delivery(3, GOOD.fingerprints, (-0.1, -2.1), {}, 0)],
)
def test_an_answer_on_weights_that_are_not_verified_is_never_a_label(receipt):
    made, _ = pool(receipt)
    with pytest.raises(WeightSyncError):
        collect(made, [])


def test_an_engine_that_does_not_come_back_is_not_waited_for_without_end(monkeypatch):
    made, _ = pool(GONE)

    async def never() -> bool:
        raise GONE

    made.actors[0].ping = SimpleNamespace(remote=never)
    monkeypatch.setattr(engine_handles, "RESTART_S", 0.0)
    with pytest.raises(RepeatedFailure, match=r"step 7: a rollout actor died and was not back after 0 s"):
        collect(made, [])


def test_receipts_of_dead_engines_are_left_out_but_not_wrong_ones():
    async def future(given):
        if isinstance(given, Exception):
            raise given
        return given

    async def got(*given):
        return await receipts([future(one) for one in given])

    assert asyncio.run(got(GONE, GOOD, task_error(RuntimeError("out of memory")))) == [GOOD]
    with pytest.raises(ValueError, match="shape"):
        asyncio.run(got(GOOD, task_error(ValueError("shape"))))


def test_what_a_pool_was_answered_adds_up():
    made, _ = pool(GOOD, GOOD)
    made.prompt_tokens = PromptTokens(50, 5)
    made._results([made._send(REQUEST), made._send(REQUEST)])
    assert made.prompt_tokens == PromptTokens(50 + 2 * 40, 5 + 2 * 30)


def test_the_answered_cases_of_all_calls_within_one_report_count_for_it():
    """Two groups of one answer each, then another call; the engine of the first dies at its first try."""
    made, _ = pool(ActorDiedError(), GOOD, GOOD, GOOD)
    made.prompt_tokens, counted = PromptTokens(), []
    with made.reporting("labels", 3):
        made._advance = counted.append
        made._results([made._send(REQUEST), made._send(REQUEST)])
        with made.reporting("labels of a part", 1):
            made._results([made._send(REQUEST)])
        assert counted == [1, 1, 1]
    assert made._advance is None
    collect(pool(GOOD)[0], [])  # a step's labels are no such report


def labelled_by_a_judge(*unjudged: int) -> RolloutPool:
    """A pool of two engines, each of which answers one group of two cases with so many replies without a verdict."""
    made, _ = pool(*(GOOD for _ in unjudged))
    reports = iter([JudgeReport("keyword:refusal:3f", 4, count, "Well.", None) for count in unjudged])
    for actor in made.actors:
        inner = actor.answer.remote

        async def judged(*args: object, inner=inner) -> RolloutResult:
            return replace(await inner(*args), judged=next(reports))

        actor.answer.remote = judged
    made._size, made.judged, made.prompt_tokens = 2, None, PromptTokens()
    made.judging = SimpleNamespace(max_unjudged=0.25)
    return made


def test_replies_without_a_verdict_are_bounded_over_the_whole_labelled_set():
    """4 + 4 replies, bound 1/4: two without a verdict in one group pass, since the set has 8; three do not."""
    made = labelled_by_a_judge(2, 0)
    made.label_now(["c1", "c2", "c3", "c4"], SERVING)
    assert made.take_judged() == JudgeReport("keyword:refusal:3f", 8, 2, "Well.", None)
    assert made.take_judged() is None
    with pytest.raises(AlarmError, match=r"judge keyword:refusal:3f gave no verdict on 3 of 8 replies.*'Well\.'"):
        labelled_by_a_judge(2, 1).label_now(["c1", "c2", "c3", "c4"], SERVING)


def test_a_small_last_part_of_a_labelled_set_is_bounded_with_the_parts_before_it():
    """Two calls for one set: none of 4 replies, then two of 4, which alone would be beyond the bound of 1/4."""
    made = labelled_by_a_judge(0, 2)
    made.label_now(["c1", "c2"], SERVING)
    made.label_now(["c3", "c4"], SERVING)
    assert (made.judged.unjudged, made.judged.replies) == (2, 8)


def test_every_engine_rests_after_its_last_group_of_a_turn():
    """Five groups on three of four engines: the last one of each says so, and the fourth is asked for nothing else."""
    groups = [Request("label", [f"c{i}"], SERVING, home) for i, home in enumerate((1, 2, 0, 1, 2))]
    sent = at_rest(groups, 4)
    assert [(one.home, len(one.case_ids), one.rest) for one in sent] == [
        (1, 1, False), (2, 1, False), (0, 1, True), (1, 1, True), (2, 1, True), (3, 0, True),
    ]  # fmt: skip
    assert str(sent[-1]) == "label 0 cases on version 3"
    assert at_rest([], 4) == []


def test_steps_of_one_group_go_round():
    made, _ = pool()
    made._step_size, made._rest = 2, False
    for actor in made.actors:
        actor.answer.remote = lambda *_: None
    assert [made.label(["c1", "c2"], SERVING, step)[0].request.home for step in (0, 1, 2)] == [0, 1, 0]
    two = [made.label(["c1", "c2", "c3", "c4"], SERVING, step) for step in (0, 1)]
    assert [[one.request.home for one in step] for step in two] == [[0, 1], [0, 1]]
