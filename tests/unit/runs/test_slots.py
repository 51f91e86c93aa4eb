"""How many trials run at once, which is refused, and who gets which place; without Ray."""

from __future__ import annotations

import os
import random

from introspect_ray.config import load_config
from introspect_ray.runs.nodes import launcher_nodes, local_at_once
from introspect_ray.runs.slots import Nodes, NodeType, Places, engines_shared, obstacle, place, trials_at_once

H100 = {"CPU": 192.0, "GPU": 8.0}
# Four trainers and one engine, a GPU each: the split of cluster/h100.yaml.
FIVE = {"train.use_gpu": True, "train.num_workers": 4, "rollout.num_gpus": 1, "batch_size": 8}
ONLINE = {**FIVE, "supervision.rule": "online"}


def at_once(flat: dict, nodes: Nodes, trials: int = 8) -> int:
    cfg = load_config(None, flat)
    return trials_at_once(cfg, [cfg] * trials, nodes)


def test_a_sweep_fills_its_nodes():
    """Four nodes of 8 H100: groups of 5 GPUs may lie on two nodes, so 6 of them fit into 32 GPUs. With fixed labels the
    first trial's engine scores for all: 1 + 7 x 4 of 32 GPUs, by nodes of 8."""
    assert at_once(ONLINE, Nodes([H100] * 4)) == 6
    assert at_once(FIVE, Nodes([H100] * 4)) == 7
    assert at_once({**ONLINE, "sweep.trials_at_once": 2}, Nodes([H100] * 4)) == 2
    assert at_once(ONLINE, Nodes([H100] * 4), trials=3) == 3
    assert at_once(ONLINE, Nodes([{"CPU": 4.0}])) == 1  # a run that does not fit is refused elsewhere, or waits


def test_one_machine_runs_as_many_trials_as_its_cores_keep_busy(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def local(**flat: object) -> int:
        cfg = load_config(None, {key.replace("__", "."): value for key, value in flat.items()})
        return local_at_once(cfg, [cfg] * 8)

    assert local() == 2  # fixed labels: a trainer each, and engines that rest
    assert local(train__threads=2) == 1
    assert local(supervision__rule="online") == 1  # trainer and engine at once
    assert local(supervision__rule="online", sweep__trials_at_once=3) == 2  # half a core each


def test_the_limits_of_an_autoscaler_count_nodes_that_are_not_there_yet():
    types = [NodeType("spot", H100, 2), NodeType("on_demand", H100, 1)]
    head = {"CPU": 4.0}
    assert at_once(ONLINE, Nodes([head], types, 3)) == 4
    assert at_once(ONLINE, Nodes([head], types, 1)) == 1  # one node of 8 at most
    assert at_once(ONLINE, Nodes([head], None)) == 8  # unknown: those run whose nodes come


def test_what_stands_beside_the_trials_takes_room_too():
    """A judging engine of 1 CPU leaves 5 of 6 CPUs, for two trials of a trainer and an engine."""
    judged = {"judge.kind": "llm", "judge.policy": "organism", "supervision.rule": "online"}
    assert at_once({"supervision.rule": "online"}, Nodes([{"CPU": 6.0}])) == 3
    assert at_once(judged, Nodes([{"CPU": 6.0}])) == 2


def test_a_bundle_is_never_split_over_nodes():
    big, small = {"CPU": 3.0}, {"CPU": 2.0}
    assert place([big, big], [[small, small], [small]]) == 1
    assert place([big, big], [[small, small], [{"CPU": 1.0}, {"CPU": 1.0}]]) == 2
    assert place([{"CPU": 1.0, "GPU": 1.0}], [[{"GPU": 0.6}], [{"GPU": 0.4}], [{"GPU": 0.1}]]) == 2


def test_a_trial_that_can_never_fit_says_why_with_the_numbers():
    def why(flat: dict, nodes: Nodes) -> str | None:
        return obstacle(load_config(None, flat), nodes)

    assert why(FIVE, Nodes([{"CPU": 4.0}], [NodeType("h100", {"CPU": 8.0, "GPU": 2.0}, 2)], 2)) == (
        "one trial needs 5 GPUs, 3 node(s) have 4"
    )
    wide = {**FIVE, "rollout.num_gpus": 4, "rollout.tensor_parallel_size": 4}
    assert why(wide, Nodes([{"CPU": 64.0, "GPU": 2.0}] * 8)) == (
        "one bundle of a trial is 1 CPU, 4 GPU on one node, and the largest node has 64 CPU, 2 GPU"
    )
    assert why(FIVE, Nodes([H100])) is None
    assert why(FIVE, Nodes([], None)) is None  # limits unknown


def test_engines_are_shared_where_no_trial_asks_them_while_it_trains():
    fixed, online = load_config(), load_config(None, {"supervision.rule": "online"})
    learner = load_config(None, {"supervision.rule": "online", "rollout.engine": "learner"})
    assert engines_shared([fixed, learner]) and not engines_shared([fixed, online])


def test_the_launchers_file_says_what_may_come():
    kinds = {"head": {"resources": {"CPU": 4}}, "spot": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 9}}
    kinds["on_demand"] = {"resources": {"CPU": 8, "GPU": 1}}
    config = {"max_workers": 3, "head_node_type": "head", "available_node_types": kinds}
    nodes = launcher_nodes([{"CPU": 0.0}], config)
    one = {"CPU": 8.0, "GPU": 1.0}
    assert nodes.all() == [{"CPU": 0.0}, one, one, one]
    assert {kind.name: kind.most for kind in nodes.types or ()} == {"spot": 3, "on_demand": 3}


def test_a_trial_that_is_started_again_has_its_place_still():
    places = Places(2, trials=3)
    places.opened(1)
    for trial in (0, 1, 2):
        places.ask(trial)
    assert [places.of(trial) for trial in (0, 1, 2)] == [0, 1, None]
    places.ask(1)
    assert places.of(1) == 1
    places.leave(1)
    places.leave(1)
    assert places.of(2) == 1


def test_places_that_no_trial_will_ask_for_are_closed():
    """Four places, of which two are open, for five trials: as soon as no more trials are to come than places are there,
    those that still wait for nodes are given up, then those that are free; never the first."""
    places = Places(4, trials=5)
    places.opened(1)
    for trial in (0, 1):
        places.ask(trial)
    assert places.close_surplus() == []  # 3 are to come, 2 places wait for nodes
    places.leave(0)
    places.ask(2)
    assert places.close_surplus() == []
    places.leave(1)
    places.ask(3)
    assert places.close_surplus() == [3]
    places.leave(2)
    places.ask(4)
    assert places.close_surplus() == [2]
    places.leave(3)
    assert places.close_surplus() == [1]
    places.leave(4)
    assert places.close_surplus() == []
    places.opened(2)  # too late: it was given up
    assert places.opening == set()


def test_every_trial_gets_a_place_and_no_place_two_trials():
    """Any order of asking, opening and leaving: all trials run, each once, and all places but the first are closed."""
    for seed in range(50):
        draw = random.Random(seed)
        count, trials = draw.randint(1, 5), draw.randint(1, 9)
        places, waiting, running, done = Places(count, trials), list(range(trials)), set(), []
        closed: list[int] = []
        while len(done) < trials:
            if waiting and len(running) < count and draw.random() < 0.6:
                running.add(waiting.pop(0))
                places.ask(max(running))
            if places.opening and draw.random() < 0.3:
                places.opened(min(places.opening))
            held = [one for one in running if places.of(one) is not None]
            assert len({places.of(one) for one in held}) == len(held)
            if held and draw.random() < 0.5:
                leaver = draw.choice(held)
                places.leave(leaver)
                running.remove(leaver)
                done.append(leaver)
            closed += places.close_surplus()
        assert sorted(done) == list(range(trials))
        assert sorted(closed) == list(range(1, count))
