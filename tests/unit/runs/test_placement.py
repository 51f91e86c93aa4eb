"""How many CPUs and GPUs a run needs at its widest."""

from __future__ import annotations

from pathlib import Path

import pytest

from introspect_ray.config import load_config
from introspect_ray.runs.placement import resources

GPU = {"train.use_gpu": True, "rollout.num_gpus": 1}
TWO = {"rollout.num_actors": 2, "train.num_workers": 2}


def test_a_colocated_engine_and_its_trainer_make_one_gpu():
    """Two trainers with an engine each: 2 GPUs over ipc; over the object store 2 + 2 x 0.6."""
    flat = {**GPU, "rollout.num_gpus": 0.6, **TWO}
    shared = load_config(None, {**flat, "rollout.weight_transfer": "ipc"})
    assert resources(shared)["GPU"] == pytest.approx(2.0)
    assert resources(load_config(None, flat))["GPU"] == pytest.approx(3.2)


def test_the_second_engine_of_a_mixed_run_has_gone_when_the_trainers_come():
    """Beside the engines: the worker of the reference cache and the second engine, or the trainers, if they need more.
    cluster/h100.yaml: 1 + max(4, 1 + 1) = 5 GPUs. One worker on CPUs: 1 + max(1, 1 + 1), without a cache 1 + max(1, 1).
    CPU and GPU are widest at different times: 1 + max(2 x 1, 1 + 1) GPUs, 4 + max(2 x 1, 1 + 4) CPUs."""
    mixed = {"supervision.rule": "mixed", "supervision.second_policy": "organism:second"}
    h100 = str(Path(__file__).parents[3] / "cluster" / "h100.yaml")
    assert resources(load_config(h100, mixed))["GPU"] == 5
    assert resources(load_config(None, mixed)) == {"CPU": 3, "GPU": 0}
    assert resources(load_config(None, {**mixed, "method": "lora", "train.reference": "live"}))["CPU"] == 2
    assert resources(load_config(None, {**mixed, **GPU, "train.num_workers": 2, "rollout.num_cpus": 4})) == {
        "CPU": 9,
        "GPU": 3,
    }
    assert resources(load_config(None, {})) == {"CPU": 2, "GPU": 0}


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
    assert (resources(cfg)["GPU"], resources(cfg, least=True)["GPU"]) == (5, 2)
