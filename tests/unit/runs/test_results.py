"""What a sweep chooses by."""

from __future__ import annotations

from introspect_ray.runs.search_space import gap


def test_a_sweep_chooses_by_the_dev_split():
    """What it chooses by is not what is reported; without a dev split there is nothing else."""
    scores = {"gap": {"em": {"value": 0.2}}, "dev": {"gap": {"em": {"value": -0.5}}}}
    assert gap(scores) == -0.5 and gap({**scores, "dev": None}) == 0.2
