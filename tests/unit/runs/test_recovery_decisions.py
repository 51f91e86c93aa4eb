"""Go on or stop: decisions about failed attempts and failed groups, without any actor."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.torch.config import _is_backend_nccl
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from introspect_ray.actors import pool as rollout_pool
from introspect_ray.actors.pool import RolloutPool, receipts
from introspect_ray.actors.relabeler import Relabeler
from introspect_ray.actors.rollout import EngineSpec, Request, RolloutResult, RolloutWorker, Serving
from introspect_ray.actors.weight_sync import Expected, WeightSyncError
from introspect_ray.config import RolloutConfig, RunConfig
from introspect_ray.engines.protocol import PromptTokens
from introspect_ray.errors import AlarmError, RepeatedFailure, UserError, one_line
from introspect_ray.labels.rules import Sources
from introspect_ray.labels.store import read_labels
from introspect_ray.records import BehaviorPair, Delivery
from introspect_ray.runs.recovery import decide, failed_part, process_groups
from introspect_ray.schedule import plan_ids


def test_only_failures_without_a_later_checkpoint_add_up():
    """Checkpoints left behind by failing attempts, limit 3: 4 (later), 4, 8 (later), 8, 4 (fallback)."""
    failures, before, seen = 0, 0, []
    for now in (4, 4, 8, 8, 4):
        failures, again = decide(failures, before, now, limit=3)
        seen.append((failures, again))
        before = now
    assert seen == [(1, True), (2, True), (1, True), (2, True), (3, False)]
    assert decide(0, 0, 0, limit=1) == (1, False)  # 1: the first one stops


def test_offloaded_shards_are_reduced_on_the_cpu():
    """Ray sets NCCL's variables for the pair of backends as for NCCL alone; none: Ray takes gloo without GPUs."""
    cfg = RunConfig.model_validate({"train": {"use_gpu": True, "offload": True}})
    assert process_groups(cfg).backend == "cpu:gloo,cuda:nccl" and _is_backend_nccl("cpu:gloo,cuda:nccl")
    assert process_groups(RunConfig()).backend is None


def task_error(cause: Exception) -> RayTaskError:
    """As an actor's exception reaches its caller."""
    return RayTaskError("method", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize("cause", [AlarmError("bound"), UserError("bad"), WeightSyncError("other bytes")])
def test_what_would_fail_again_is_raised_as_itself(cause):
    for failure in (cause, task_error(cause)):
        with pytest.raises(type(cause)) as caught:
            failed_part(WorkerGroupError("", {0: ValueError("beside it"), 1: failure}), {})
        assert caught.value is cause


def test_the_failed_part_is_named_in_one_line():
    engine, relabeler = ActorUnavailableError("killed", b"1" * 16), ActorUnavailableError("killed", b"2" * 16)

    def named(error: Exception) -> str:
        return failed_part(error, {engine.actor_id: "rollout actor 3"})

    assert named(WorkerGroupError("", {1: RuntimeError("CUDA out of memory\nmore")})) == (
        "training worker 1 failed (RuntimeError: CUDA out of memory)"
    )
    assert named(ControllerError(ValueError("no room"))) == "training failed (ValueError: no room)"
    dead = WorkerHealthCheckFailedError("no answer", ActorDiedError())
    assert named(WorkerGroupError("", {0: RuntimeError("connection reset by peer"), 1: dead})) == (
        "training worker 1 died"
    )
    assert named(WorkerGroupError("", {0: RuntimeError("reset"), 1: relabeler})) == "the relabeler died"
    assert named(WorkerGroupError("", {0: engine, 1: RuntimeError("reset")})) == "rollout actor 3 died"
    assert named(ActorDiedError()) == "Ray Train's controller died"


GOOD = Delivery(3, {"model.layers.0": "abc"}, (-0.1, -2.0), {}, 30)
SERVING = Serving(3, Expected(3, GOOD.fingerprints, (-0.1, -2.0)), [None])
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
    made.actors, made._limit, made._tolerance, made._cases = [actor("a"), actor("b")], 3, 0.002, []
    return made, asked


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
    made.actors = [SimpleNamespace(ping=SimpleNamespace(remote=ping))]
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
    monkeypatch.setattr(rollout_pool, "RESTART_S", 0.0)
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


def test_what_was_asked_for_before_never_reaches_the_table(tmp_path):
    """Pairs of a dead training worker's request come in after the run went on elsewhere."""
    cfg = RunConfig.model_validate({"batch_size": 4, "steps": 1, "supervision": {"rule": "online"}})
    names = {f"c{i}": ("A", "B") for i in range(4)}
    made = [BehaviorPair(name, "A", "B", (), (), False, False, 0) for name in names]

    async def run() -> list:
        came = asyncio.Event()

        async def collect(*_: object) -> list:
            await came.wait()
            return [RolloutResult(made, None, 0.0, 0.0, PromptTokens())]

        maker = Relabeler(cfg, Sources(names, "m", {}), str(tmp_path), 1, SimpleNamespace(collect=collect))
        late = asyncio.create_task(maker.relabel(0, 0, None, [], [None]))
        await asyncio.sleep(0)
        await maker.stop()
        came.set()
        await late
        maker._writer.flush()
        with pytest.raises(RuntimeError, match="stopped"):
            await maker.fetch(0, 0)
        return list(tmp_path.iterdir())

    assert asyncio.run(run()) == []


@pytest.mark.parametrize(
    ("groups", "rate"),
    [
        ((PromptTokens(100, 10), PromptTokens(300, 90)), 0.25),  # of the step's tokens, not the groups' mean of 0.2
        ((PromptTokens(), PromptTokens()), None),  # engines without a prefix cache count nothing
    ],
)
def test_the_hit_rate_of_a_step_is_that_of_its_tokens(tmp_path, groups, rate):
    cfg = RunConfig.model_validate({"batch_size": 4, "steps": 1, "supervision": {"rule": "online"}})
    names = {f"c{i}": ("A", "B") for i in range(4)}
    ids = plan_ids(cfg, list(names), 0)
    made = [BehaviorPair(name, "A", "B", (), (), False, False, 0) for name in ids]
    halves = (made[:2], made[2:])
    results = [RolloutResult(half, None, 0.0, 0.0, tokens) for half, tokens in zip(halves, groups, strict=True)]

    async def run() -> float | None:
        async def collect(*_: object) -> list:
            return results

        maker = Relabeler(cfg, Sources(names, "m", {}), str(tmp_path), 1, SimpleNamespace(collect=collect))
        await maker.relabel(0, 0, None, [], [None])
        return (await maker.fetch(0, 0)).prefix_hit_rate

    assert asyncio.run(run()) == rate


def test_a_step_that_was_asked_again_is_not_overtaken_in_the_table(tmp_path):
    """The engine died with the groups of both steps, and answers the later one first."""
    cfg = RunConfig.model_validate({"batch_size": 4, "steps": 2, "lag": 1, "supervision": {"rule": "online"}})
    names = {f"c{i}": ("A", "B") for i in range(8)}

    async def run() -> None:
        later = asyncio.Event()

        async def collect(_: object, where: str, __: object) -> list:
            if where == "step 0":
                await later.wait()
            else:
                later.set()
            ids = plan_ids(cfg, list(names), int(where.split()[1]))
            made = [BehaviorPair(name, "A", "B", (), (), False, False, 0) for name in ids]
            return [RolloutResult(made, None, 0.0, 0.0, PromptTokens())]

        maker = Relabeler(cfg, Sources(names, "m", {}), str(tmp_path), 1, SimpleNamespace(collect=collect))
        await asyncio.gather(*(maker.relabel(step, 0, None, [], [None]) for step in (0, 1)))
        await maker.finish()

    asyncio.run(run())
    assert [label.provenance.step for label in read_labels(str(tmp_path))] == [0] * 4 + [1] * 4


def test_what_a_pool_was_answered_adds_up():
    made, _ = pool(GOOD, GOOD)
    made.prompt_tokens = PromptTokens(50, 5)
    made._now([made._send(REQUEST), made._send(REQUEST)])
    assert made.prompt_tokens == PromptTokens(50 + 2 * 40, 5 + 2 * 30)
