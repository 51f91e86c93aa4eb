"""The schedule of a run: the cases of each step, the weight version of their labels, and the engine of each group."""

from __future__ import annotations

from collections import Counter

import pytest

from introspect_ray.config import RunConfig, load_config, override
from introspect_ray.schedule import (
    auxiliary_plan,
    deal,
    delivery_number,
    idle_engines,
    idle_warning,
    label_version,
    step_group,
    step_plan,
    steps_due,
    steps_of_version,
)


def flat(seed, steps, num_cases, batch_size):
    return [i for t in range(steps) for i in step_plan(seed, t, num_cases, batch_size)]


def test_every_case_comes_once_per_epoch_across_batches_too():
    """10 cases in batches of 4: epoch 0 is places 0-9, ending inside step 2; 5 steps are two epochs. Code
    that drops the last, short batch of an epoch would never show 2 of the 10 cases."""
    plan = flat(0, 5, 10, 4)
    assert sorted(plan[:10]) == sorted(plan[10:]) == list(range(10))
    assert plan[:10] != plan[10:]  # epochs are shuffled anew


def test_plan_is_a_pure_function_of_seed_and_step():
    forward = [step_plan(3, t, 50, 8) for t in range(20)]
    assert [step_plan(3, t, 50, 8) for t in reversed(range(20))] == forward[::-1]
    assert [step_plan(4, t, 50, 8) for t in range(20)] != forward


def test_the_batch_size_only_cuts_the_same_order_of_cases():
    assert flat(1, 6, 30, 5) == flat(1, 3, 30, 10)


def test_a_batch_larger_than_the_set_runs_through_several_epochs():
    assert Counter(step_plan(0, 2, 3, 9)) == {0: 3, 1: 3, 2: 3}


def test_permutations_are_uniform():
    """3 cases have 6 orders; 6,000 epochs give each 1,000 ± 4 sd of 29. Sorting by a biased key would not."""
    orders = Counter(tuple(step_plan(0, epoch, 3, 3)) for epoch in range(6000))
    assert len(orders) == 6 and all(abs(n - 1000) < 116 for n in orders.values())


def test_plan_refuses_an_empty_set_and_a_negative_step():
    with pytest.raises(ValueError, match="num_cases"):
        step_plan(0, 0, 0, 4)
    with pytest.raises(ValueError, match="step >= 0"):
        step_plan(0, -1, 5, 4)


def config(steps: int, lag: int, sync_every: int):
    return load_config(None, {"steps": steps, "lag": lag, "rollout.sync_every": sync_every})


@pytest.mark.parametrize(
    ("lag", "sync_every", "versions"),
    [
        (0, 1, [0, 1, 2, 3, 4, 5]),  # every gradient step on current weights (paper §4.2)
        (1, 1, [0, 0, 1, 2, 3, 4]),  # t - 1; "newest there is" would give 1 at step 1
        (2, 1, [0, 0, 0, 1, 2, 3]),
        (0, 3, [0, 0, 0, 3, 3, 3]),  # only versions 0 and 3 are delivered
        (1, 2, [0, 0, 0, 2, 2, 4]),  # t - 1 = 0 0 1 2 3 4, rounded down to an even version
    ],
)
def test_label_version_by_hand(lag, sync_every, versions):
    assert [label_version(t, lag, sync_every) for t in range(6)] == versions


@pytest.mark.parametrize("lag", [0, 1, 2, 5])
@pytest.mark.parametrize("sync_every", [1, 2, 3])
def test_every_step_is_requested_once_and_in_time(lag, sync_every):
    """The published versions request every step exactly once, not after the step itself (a deadlock) and less than
    lag + sync_every steps ahead (the bound of the buffer)."""
    cfg = config(20, lag, sync_every)
    requested = [(t, v) for v in range(0, 20, sync_every) for t in steps_of_version(v, cfg)]
    assert sorted(t for t, _ in requested) == list(range(20))
    for step, version in requested:
        assert version == label_version(step, lag, sync_every)
        assert version <= step < version + lag + sync_every


@pytest.mark.parametrize(("start", "requested"), [(0, [[0, 1], [2], [3], [4], []]), (3, [[3, 4], []]), (4, [[4]])])
def test_labels_of_m0_alone_are_requested_a_step_ahead(start, requested):
    cfg = override(config(5, 0, 1), {"supervision.rule": "fixed"})
    assert [steps_due(step, start, cfg) for step in range(start, 5)] == requested


def test_deal_by_hand():
    assert deal("abc", 2, 2, 1) == [(1, "ab"), (0, "c")]
    assert deal("abcd", 1, 3, 2) == [(2, "a"), (0, "b"), (1, "c"), (2, "d")]


def test_auxiliary_texts_have_a_stream_of_their_own():
    """Equal counts and batches, but not the order of the cases."""
    plans = [[auxiliary_plan(0, t, 30, 10) for t in range(3)], [step_plan(0, t, 30, 10) for t in range(3)]]
    assert all(sorted(i for step in plan for i in step) == list(range(30)) for plan in plans) and plans[0] != plans[1]


def online(**flat: object) -> RunConfig:
    return load_config(None, {"supervision.rule": "online", **{k.replace("__", "."): v for k, v in flat.items()}})


@pytest.mark.parametrize(
    ("flat", "group", "idle"),
    [
        ({}, 8, 0),
        ({"rollout__num_actors": 4}, 2, 0),
        ({"rollout__num_actors": 4, "rollout__group_size": 256}, 256, 3),
        ({"rollout__num_actors": 4, "rollout__group_size": 256, "lag": 3}, 256, 0),  # four steps at a time
        ({"rollout__num_actors": 4, "lag": 1}, 4, 0),
        ({"rollout__num_actors": 4, "batch_size": 9}, 3, 1),  # three groups of three
        ({"rollout__num_actors": 4, "rollout__group_size": 8, "rollout__engine": "learner"}, 8, 0),
        ({"batch_size": 200}, 64, 0),
    ],
)
def test_a_batch_is_dealt_evenly_to_the_engines(flat, group, idle):
    cfg = online(**{"batch_size": 8, "rollout__group_size": None, **flat})
    assert (step_group(cfg), idle_engines(cfg)) == (group, idle)


def test_engines_that_cannot_be_busy_are_named_with_the_remedy():
    given = online(batch_size=8, rollout__num_actors=4, rollout__group_size=256)
    assert idle_warning(given) == (
        "3 of 4 engines have nothing to do while a step is labelled (batch_size=8 in groups of 256, lag=0): lower "
        "rollout.num_actors to 1, or leave rollout.group_size=256 out (groups of 2)"
    )
    few = idle_warning(online(batch_size=2, rollout__num_actors=4, rollout__group_size=None))
    assert few and few.endswith("lower rollout.num_actors to 2")
    assert idle_warning(online()) is None


def test_deliveries_are_numbered_without_gaps():
    """Their probes look at the vocabulary in turn. Online each sync_every steps; otherwise for interim scores alone."""
    made = online(rollout__sync_every=4, steps=12)
    assert [delivery_number(version, made) for version in (0, 4, 8, 12)] == [0, 1, 2, 3]
    for flat in ({}, {"supervision.rule": "online", "rollout.engine": "learner"}):
        scored = load_config(None, {"eval.every": 5, **flat})
        assert [delivery_number(version, scored) for version in (0, 5, 10)] == [0, 1, 2]
    assert delivery_number(100, load_config(None, {})) == 100  # the last one; there is no other but the first
