"""How many CPUs and GPUs a run needs at its widest."""

from __future__ import annotations

from pathlib import Path

import pytest

from introspect_ray.config import load_config
from introspect_ray.runs.placement import bundles, fewest, resources

GPU = {"train.use_gpu": True, "rollout.num_gpus": 1}
TWO = {"rollout.num_actors": 2, "train.num_workers": 2}


def test_a_colocated_engine_and_its_trainer_make_one_gpu():
    """Two trainers with an engine each: 2 GPUs over ipc; over the object store 2 + 2 x 0.6."""
    flat = {**GPU, "rollout.num_gpus": 0.6, **TWO}
    shared = load_config(None, {**flat, "rollout.weight_transfer": "ipc"})
    assert resources(shared)["GPU"] == pytest.approx(2.0)
    assert resources(load_config(None, flat))["GPU"] == pytest.approx(3.2)


def test_the_set_up_of_a_mixed_run_is_made_where_its_trainers_will_be():
    """Its second engine and the worker of the reference cache are gone when the trainers come: 1 + 4 GPUs with
    cluster/h100.yaml, 1 + 1 CPUs. An engine of 4 CPUs does not fit into the bundle of a trainer of 1 CPU, so it is
    beside 1 + 2 bundles: 2 x 4 + 2 x 1 CPUs and 2 + 2 GPUs."""
    mixed = {"supervision.rule": "mixed", "supervision.second_policy": "organism:second"}
    h100 = str(Path(__file__).parents[3] / "cluster" / "h100.yaml")
    assert resources(load_config(h100, mixed))["GPU"] == 5
    assert resources(load_config(None, mixed)) == {"CPU": 2, "GPU": 0}
    assert resources(load_config(None, {**mixed, **GPU, "train.num_workers": 2, "rollout.num_cpus": 4})) == {
        "CPU": 10,
        "GPU": 4,
    }
    assert resources(load_config(None, {})) == {"CPU": 2, "GPU": 0}


def test_an_engine_is_in_the_bundle_of_the_trainer_whose_gpu_it_shares():
    """Over ipc; otherwise it has a bundle of its own. The trainers' bundles come first."""
    share = {**GPU, **TWO, "rollout.num_gpus": 0.6}
    paired = bundles(load_config(None, {**share, "rollout.weight_transfer": "ipc"}))
    assert [one["CPU"] for one in paired] == [2, 2] and [one["GPU"] for one in paired] == pytest.approx([1, 1])
    alone = bundles(load_config(None, {**share, "rollout.num_cpus": 3}))
    assert alone == [{"CPU": 1, "GPU": 1}] * 2 + [{"CPU": 3, "GPU": 0.6}] * 2
    assert bundles(load_config(None, {**share, "rollout.num_cpus": 3}), engines=False) == [{"CPU": 1, "GPU": 1}] * 2


def test_each_judging_policy_has_an_engine_of_its_own():
    """Engines of 2 CPUs and one GPU: one for the rollouts, one per judge.policy; a trainer of one CPU and one GPU."""
    judge = {"judge.kind": "llm", "judge.policy": "organism", "rollout.num_cpus": 2, **GPU}
    assert resources(load_config(None, judge)) == {"CPU": 5, "GPU": 3}
    two = {**judge, "judge.second": {"kind": "llm", "policy": "organism:second"}}
    assert resources(load_config(None, two)) == {"CPU": 7, "GPU": 4}
    assert resources(load_config(None, {**two, "judge.second": {"kind": "keyword"}})) == {"CPU": 5, "GPU": 3}


def test_an_elastic_run_needs_room_for_its_fewest_workers():
    """One engine beside one to four workers. The reference is made by one worker, before the training."""
    cfg = load_config(None, {**GPU, "train.num_workers": [1, 4]})
    assert (resources(cfg)["GPU"], resources(fewest(cfg))["GPU"]) == (5, 2)


def test_a_run_that_releases_its_engines_needs_the_widest_of_its_phases():
    """Set-up: two engines and the worker of the reference. Training: four workers. Evaluation: two engines."""
    flat = {**GPU, "rollout.num_actors": 2, "train.num_workers": 4}
    assert resources(load_config(None, flat))["GPU"] == 6
    assert resources(load_config(None, {**flat, "rollout.release": True})) == {"CPU": 4, "GPU": 4}
    few = {**flat, "train.num_workers": 1, "rollout.release": True}
    assert resources(load_config(None, few))["GPU"] == 3
