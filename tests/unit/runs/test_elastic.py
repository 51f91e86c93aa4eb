"""What Ray Train is told to start."""

from __future__ import annotations

from introspect_ray.config import load_config
from introspect_ray.runs.elastic import scaling


def test_workers_are_elastic_within_their_bounds():
    made = scaling(load_config(None, {"train.num_workers": [2, 4], "batch_size": 8, "train.num_cpus": 3}))
    assert made.elasticity_enabled and (made.min_workers, made.max_workers) == (2, 4)
    assert made.resources_per_worker == {"CPU": 3.0}
    assert not scaling(load_config(None, {"train.num_workers": 2})).elasticity_enabled
    shared = {"train.use_gpu": True, "rollout.num_gpus": 0.6, "rollout.weight_transfer": "ipc"}
    assert scaling(load_config(None, shared)).resources_per_worker == {"CPU": 1.0, "GPU": 0.4}
