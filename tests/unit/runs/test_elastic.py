"""What Ray Train is told to start."""

from __future__ import annotations

from types import SimpleNamespace

from introspect_ray.config import load_config
from introspect_ray.runs.elastic import scaling

GPU = {"train.use_gpu": True, "rollout.num_gpus": 0.6}


def test_workers_are_elastic_within_their_bounds():
    made = scaling(load_config(None, {"train.num_workers": [2, 4], "batch_size": 8, "train.num_cpus": 3}), None)
    assert made.elasticity_enabled and (made.min_workers, made.max_workers) == (2, 4)
    assert made.resources_per_worker == {"CPU": 3.0} and made.label_selector is None
    assert not scaling(load_config(None, {"train.num_workers": 2}), None).elasticity_enabled


def test_a_worker_that_shares_a_gpu_goes_to_the_node_of_its_engine():
    """Two engines on one node, one on another: two workers and one, each with what its engine leaves of a GPU."""
    pool = SimpleNamespace(engines=SimpleNamespace(places=lambda: [("a", ["0"]), ("a", ["1"]), ("b", ["0"])]))
    flat = {**GPU, "train.num_workers": 3, "rollout.num_actors": 3, "rollout.weight_transfer": "ipc"}
    made = scaling(load_config(None, flat), pool)
    assert [one["ray.io/node-id"] for one in made.label_selector] == ["a", "a", "b"]
    assert made.resources_per_worker == {"CPU": 1.0, "GPU": 0.4}
