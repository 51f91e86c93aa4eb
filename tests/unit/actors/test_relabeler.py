"""The relabeler without Ray: its alarm, the order of its table, and what it refuses once it is stopped."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from introspect_ray.actors.interim import Asked, Interim
from introspect_ray.actors.relabeler import Relabeler, unshard
from introspect_ray.actors.rollout import RolloutResult
from introspect_ray.config import RunConfig
from introspect_ray.engines.protocol import PromptTokens
from introspect_ray.errors import AlarmError, Interrupted, RepeatedFailure
from introspect_ray.labels import rules
from introspect_ray.labels.calibration import Calibration
from introspect_ray.labels.reading import Reading
from introspect_ray.labels.rules import Sources
from introspect_ray.labels.store import read_labels
from introspect_ray.records import Answers, BehaviorPair, Explanation, StepLabels
from introspect_ray.schedule import plan_ids


def test_the_agreement_alarm_is_raised_where_labels_are_fetched(tmp_path, monkeypatch):
    """The rule flips every label although ν = 0.9 is requested: P(K = 0 of 16) = 1e-16."""
    cases = {f"c{i}": ("A", "B") for i in range(16)}
    cfg = RunConfig.model_validate({"batch_size": 16, "steps": 1, "supervision": {"rule": "online", "agreement": 0.9}})
    true_rule = rules.online_label
    monkeypatch.setattr(rules, "online_label", lambda *a, **k: true_rule(*a, **{**k, "agreement": 0.0}))

    async def collect(groups, *_):
        return await asyncio.gather(*groups)

    pool = SimpleNamespace(collect=collect)
    maker = Relabeler(cfg, rules.Sources(cases, "m", {}), str(tmp_path), pool)

    async def step() -> StepLabels:
        async def group():
            ids = plan_ids(cfg, list(cases), 0)
            pairs = [BehaviorPair(i, "A", "B", (), (), False, False, 0) for i in ids]
            return RolloutResult(pairs, None, 0.0, 0.0, PromptTokens())

        await maker.enter(1)
        await maker.relabel(0, 0, None, [], [group()])
        return await maker.fetch(0, 0)

    with pytest.raises(AlarmError, match=r"0 of 16 labels .* supervision\.agreement=0\.9 allows"):
        asyncio.run(step())
    assert len(list(tmp_path.iterdir())) == 1  # the labels are there to be audited


def test_a_steps_pairs_are_read_by_the_calibration_of_the_run(tmp_path):
    """By its logprobs the policy says A twice. B is .9 above its mean on x and A .1, on x∖C A is further above: the
    label says that the answer changes from B to A. Two shards of the learner are read as well as an engine's group."""
    cfg = RunConfig.model_validate({"batch_size": 2, "steps": 1, "supervision": {"rule": "online"}})
    calibration = Calibration({("A", "B"): {"cued": (-0.3, -2.5), "ablated": (-0.3, -1.0)}})
    sources = Sources(dict.fromkeys(("c0", "c1"), ("A", "B")), "m", {}, reading=Reading(calibration))
    raw = {i: BehaviorPair(i, "A", "A", (-0.2, -1.6), (-0.2, -1.6), False, False, 0) for i in ("c0", "c1")}
    plan = plan_ids(cfg, ["c0", "c1"], 0)
    maker = Relabeler(cfg, sources, str(tmp_path))

    async def step() -> StepLabels:
        await maker.enter(2)
        await maker.offer(0, 0, 1, [raw[plan[1]]])
        await maker.offer(0, 0, 0, [raw[plan[0]]])
        return await maker.fetch(0, 0)

    made = asyncio.run(step())
    assert made.labels[0].explanation == made.labels[0].current == Explanation(True, "A")
    assert made.labels[0].provenance.calibration == calibration.identity
    assert (made.pairs[0].cued, made.pairs[0].cued_logprobs) == ("B", (-0.2, -1.6))


def test_all_ranks_hear_at_the_same_step_that_the_job_ends(tmp_path):
    """Asked between the two fetches of step 0: both ranks take part in step 0, and both leave after step 1."""
    cfg = RunConfig.model_validate({"batch_size": 2, "steps": 2, "supervision": {"rule": "online"}})
    names = dict.fromkeys(("c0", "c1"), ("A", "B"))
    maker = Relabeler(cfg, Sources(names, "m", {}), str(tmp_path))

    async def run() -> list[bool]:
        await maker.enter(2)
        for step in (0, 1):
            for rank, name in enumerate(plan_ids(cfg, list(names), step)):
                await maker.offer(step, step, rank, [BehaviorPair(name, "A", "B", (), (), False, False, step)])
        told = [(await maker.fetch(0, 1)).halt]
        await maker.halt()
        return [*told, *[(await maker.fetch(step, rank)).halt for step, rank in ((0, 0), (1, 1), (1, 0))]]

    assert asyncio.run(run()) == [False, False, True, True]


def test_unshard_undoes_the_dealing():
    """Five pairs on two ranks: 0 2 4 and 1 3. The ranks may come in any order, and one may have none."""
    assert unshard({1: list("bd"), 0: list("ace")}) == list("abcde")
    assert unshard({0: ["a"], 1: []}) == ["a"]
    with pytest.raises(ValueError, match="extended slice"):
        unshard({0: list("abc"), 1: list("d")})


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

        maker = Relabeler(cfg, Sources(names, "m", {}), str(tmp_path), SimpleNamespace(collect=collect))
        await maker.enter(1)
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

        maker = Relabeler(cfg, Sources(names, "m", {}), str(tmp_path), SimpleNamespace(collect=collect))
        await maker.enter(1)
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

        maker = Relabeler(cfg, Sources(names, "m", {}), str(tmp_path), SimpleNamespace(collect=collect))
        await maker.enter(1)
        await asyncio.gather(*(maker.relabel(step, 0, None, [], [None]) for step in (0, 1)))
        await maker.finish()

    asyncio.run(run())
    assert [label.provenance.step for label in read_labels(str(tmp_path))] == [0] * 4 + [1] * 4


def test_a_relabeler_serves_one_group_of_workers(tmp_path):
    """Ray Train starts a second group by itself when there is room for more workers: recovery has to start it."""
    maker = Relabeler(RunConfig(), Sources({}, "m", {}), str(tmp_path))

    async def run() -> list[int]:
        seen = [await maker.entered()]
        await maker.enter(2)
        with pytest.raises(Interrupted, match="there is room for 3 training workers, 2 were running"):
            await maker.enter(3)
        return [*seen, await maker.entered()]

    assert asyncio.run(run()) == [0, 2]


def test_scores_beside_the_training_are_there_before_it_ends(tmp_path):
    """And a request that is lost costs a score, not the run."""
    posted, cfg = [], RunConfig.model_validate({"batch_size": 1, "steps": 1})

    async def collect(groups, where, note):
        await asyncio.sleep(0.01)
        if groups == ["lost"]:
            raise RepeatedFailure("an engine died 3 times")
        return groups

    async def post(run, answers):
        posted.append((run, answers))

    status = SimpleNamespace(post_answers=SimpleNamespace(remote=post))
    interim = Interim(["c0"], 8, status, "mine")
    pair = BehaviorPair("c0", "A", "A", (), (), False, False, 4)
    results = [RolloutResult([answer], None, 0.0, 0.0, PromptTokens()) for answer in (pair, (7, 8))]
    maker = Relabeler(cfg, Sources({"c0": ("A", "B")}, "m", {}), str(tmp_path), SimpleNamespace(collect=collect))

    async def run():
        await maker.score(Asked(4, results, interim))
        await maker.score(Asked(8, ["lost"], interim))
        await maker.finish()

    asyncio.run(run())
    assert posted == [("mine", Answers(4, [pair], [(7, 8)]))]
    assert maker.notes == ["scores at step 8: there are none (an engine died 3 times)"]
