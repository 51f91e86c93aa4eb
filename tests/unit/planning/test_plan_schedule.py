"""The closed form and the simulated loop, both against small cases derived by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from introspect_ray.config import load_config
from introspect_ray.planning.durations import Durations
from introspect_ray.planning.schedule import predict
from introspect_ray.planning.simulation import simulate
from introspect_ray.schedule import label_version

# publish 1 s, deliver 2 s, label 0.5 s a case, update 7 s
TIMES = Durations(gather=1.0, deliver=2.0, label_fixed=0.0, label_case=0.5, update=7.0)


def config(**changes):
    flat = {
        "supervision.rule": "online",
        "steps": 300,
        "batch_size": 8,
        "rollout.group_size": 8,
        "train.num_workers": 1,
    }
    return load_config(None, {**flat, **{key.replace("__", "."): value for key, value in changes.items()}})


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"lag": 0}, 1 + 2 + 4 + 7),  # everything in turn: 8 cases at 0.5 s are 4 s of labelling
        ({"lag": 1}, 1 + 7),  # max(publish + update, deliver + label) = max(8, 6)
        ({"lag": 1, "batch_size": 16, "rollout__group_size": 16}, 2 + 8),  # max(8, 2 + 8): the engine is the slower
        ({"lag": 0, "rollout__num_actors": 2, "rollout__group_size": 4}, 1 + 2 + 2 + 7),  # two engines, 2 s each
        ({"lag": 0, "rollout__num_actors": 2}, 1 + 2 + 4 + 7),  # one group: a second engine does not help at lag 0
        ({"lag": 0, "rollout__group_size": 5}, 1 + 2 + 4 + 7),  # 5 cases, then 3, on one engine
        # sync every 2 steps: publish, deliver, label, update, update; the second labels are made meanwhile
        ({"lag": 0, "rollout__sync_every": 2}, (1 + 2 + 4 + 7 + 7) / 2),
        ({"lag": 1, "rollout__sync_every": 2}, (1 + 7 + 7) / 2),
    ],
)
def test_step_time_by_hand(changes, step):
    cfg = config(**changes)
    assert predict(cfg, TIMES).step == pytest.approx(step)
    assert simulate(cfg, TIMES).pace.step == pytest.approx(step, rel=0.02)  # 300 steps, the first of them waiting


def test_latency_binds_at_lag_one_and_not_at_lag_two():
    """Two engines that take turns, 20 s of labelling: throughput allows 2 + 20 / 2 = 12 s a step. At lag 1 a version's
    round trip 1 + 2 + 20 + 7 = 30 s is two steps (15 s); at lag 2 it is three (10 s), so the engines bind at 12 s."""
    times = Durations(gather=1.0, deliver=2.0, label_fixed=0.0, label_case=2.5, update=7.0)
    for lag, step in ((1, 15.0), (2, 12.0)):
        cfg = config(lag=lag, rollout__num_actors=2)
        assert predict(cfg, times).step == pytest.approx(step)
        assert simulate(cfg, times).pace.step == pytest.approx(step, rel=0.02)


def test_the_first_steps_second_by_second():
    """Lag 1: version 0 is published at 1 and delivered at 3; steps 0 and 1 are labelled at 7 and 11. Step 0 ends at 14.
    Version 1 is out at 15, so step 1 (ready since 11) ends at 22. Version 1 is delivered at 17, its labels for step 2
    are there at 21; version 2 is out at 23 and step 2 ends at 30."""
    run = simulate(config(lag=1), TIMES, steps=3)
    assert run.ends == (14.0, 22.0, 30.0)
    assert run.pace.trainer_idle == pytest.approx((7 - 1) / 30)  # the wait for step 0 alone
    assert run.pace.engine_idle == pytest.approx(1 - (3 * 2 + 3 * 4) / 30)  # three deliveries, three labellings


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"lag": 0}, 1 + 2 + 4 + 7),  # the engines are free at each publication: nothing changes
        ({"lag": 1}, 1 + 7),  # max(publish + update, publish + deliver + label) = max(8, 7)
        ({"lag": 1, "batch_size": 16, "rollout__group_size": 16}, 1 + 2 + 8),  # max(8, 11): the engine publishes too
        # Two engines, one group a step: each labels every other step, but both are free only when it is done.
        ({"lag": 2, "batch_size": 16, "rollout__group_size": 16, "rollout__num_actors": 2}, 1 + 2 + 8),
        # Every two steps a version labels two, 16 s: 19 a cycle, where the trainer takes 1 + 2 x 7.
        ({"lag": 1, "batch_size": 16, "rollout__group_size": 16, "rollout__sync_every": 2}, (1 + 2 + 16) / 2),
    ],
)
def test_step_time_by_hand_where_publishing_is_a_rendezvous(changes, step):
    """A publication waits until all engines are free, and takes a second of theirs as well."""
    cfg, times = config(**changes), replace(TIMES, rendezvous=True)
    assert predict(cfg, times).step == pytest.approx(step)
    assert simulate(cfg, times).pace.step == pytest.approx(step, rel=0.02)


def test_the_first_steps_of_a_rendezvous_second_by_second():
    """Lag 1, 8 s of labelling: version 0 is out at 1 and confirmed at 3, steps 0 and 1 are labelled at 11 and 19. Step
    0 ends at 18. Version 1 begins when the engine is free, at 19, and is out at 20; step 1 ends at 27. Version 1 is
    confirmed at 22, step 2 labelled at 30; version 2 begins then, is out at 31, and step 2 ends at 38."""
    cfg = config(lag=1, batch_size=16, rollout__group_size=16)
    run = simulate(cfg, replace(TIMES, rendezvous=True), steps=3)
    assert run.ends == (18.0, 27.0, 38.0)
    assert run.pace.trainer_idle == pytest.approx((10 + 1 + 3) / 38)  # labels of step 0, then twice the engine
    assert run.pace.engine_idle == pytest.approx(1 - (3 * (1 + 2) + 3 * 8) / 38)


def test_idle_shares_where_publishing_is_a_rendezvous():
    """Two engines that take turns, 8 s a step: of 11 s both publish and confirm (3 s) and one labels, 4 s on average;
    the trainer publishes and updates for 8 s."""
    cfg = config(lag=2, batch_size=16, rollout__group_size=16, rollout__num_actors=2)
    times = replace(TIMES, rendezvous=True)
    for pace in (predict(cfg, times), simulate(cfg, times).pace):
        assert pace.trainer_idle == pytest.approx(3 / 11, abs=0.01)
        assert pace.engine_idle == pytest.approx(1 - 7 / 11, abs=0.01)


def test_idle_shares_by_hand():
    """Lag 0: of 14 s the trainer waits for delivery and labels (6 s), the engine works for those 6 s."""
    for pace in (predict(config(lag=0), TIMES), simulate(config(lag=0), TIMES).pace):
        assert pace.trainer_idle == pytest.approx(6 / 14)
        assert pace.engine_idle == pytest.approx(8 / 14)


def test_fixed_labels_need_no_engine():
    cfg = config(supervision__rule="fixed")
    assert predict(cfg, TIMES).step == simulate(cfg, TIMES).pace.step == 7.0
    assert simulate(cfg, TIMES).pace.engine_idle == 1.0


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("sync_every", [1, 2, 3])
def test_where_the_learner_labels_each_step_takes_its_labels_and_its_update(lag, sync_every):
    """0.5 + 7 s whatever the lag; nothing is published, no engine works, and the trainer waits for nobody. The loop
    offers each step once, with the version the lag asks for; those of version 0 come first, one by one."""
    cfg = config(lag=lag, rollout__sync_every=sync_every, rollout__engine="learner")
    times = replace(TIMES, label_own=0.5)
    run = simulate(cfg, times, steps=12)
    assert run.seconds == 12 * 7.5
    assert run.ends[0] == min(12, lag + sync_every) * 0.5 + 7
    assert sorted(run.requests) == [(step, label_version(step, lag, sync_every)) for step in range(12)]
    for pace in (predict(cfg, times), run.pace):
        assert (pace.step, pace.trainer_idle, pace.engine_idle) == (7.5, 0.0, 1.0)


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("sync_every", [1, 2, 3])
def test_the_simulation_asks_for_what_the_loop_asks_for(lag, sync_every):
    cfg = config(lag=lag, rollout__sync_every=sync_every)
    requests = simulate(cfg, TIMES, steps=12).requests
    assert sorted(requests) == [(step, label_version(step, lag, sync_every)) for step in range(12)]


def test_formula_and_simulation_agree_over_a_grid():
    """Wherever every engine gets the same work a step, the formula is the simulated steady state, within 3 %, through
    the object store and from GPU to GPU."""
    seconds = (0.1, 1.0, 3.0)
    for lag, sync_every, engines in itertools.product((0, 1, 2), (1, 2, 4), (1, 4, 16)):
        cfg = config(
            lag=lag, rollout__sync_every=sync_every, rollout__num_actors=engines, batch_size=32,
            rollout__group_size=32 // engines, steps=200,
        )  # fmt: skip
        for gather, deliver, label, update, met in itertools.product(
            (0.1, 2.0), seconds, seconds, seconds, (False, True)
        ):
            times = Durations(gather, deliver, 0.0, label * engines / 32, update, rendezvous=met)
            ours, theirs = predict(cfg, times), simulate(cfg, times).pace
            assert ours.step == pytest.approx(theirs.step, rel=0.03), (lag, sync_every, engines, times)
            assert ours.trainer_idle == pytest.approx(theirs.trainer_idle, abs=0.03)
            assert ours.engine_idle == pytest.approx(theirs.engine_idle, abs=0.03)
