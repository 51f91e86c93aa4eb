"""What trackers get of results, and what a sweep chooses by."""

from __future__ import annotations

import json

import pytest

from introspect_ray.runs.results import track_aggregate, tracked
from introspect_ray.runs.search_space import gap
from introspect_ray.storage import open_store
from introspect_ray.storage.tracking import JsonlTracker

GAPS = {part: {"value": at, "ci": [at - 0.1, at + 0.1]} for part, at in (("em", 0.2), ("content", 0.3))}
SCORES = {
    "explanation": {"self": {"em": 0.6, "em_ci": [0.5, 0.7]}},
    "behavior": {"em": 0.9},
    "disagreement": {"self": None},
    "sources": None,
    "gap": GAPS,
    "dev": {"cases": 2, "gap": {"em": {"value": -0.5, "ci": [-1.0, 0.0]}}},
}


def test_gaps_are_tracked_with_their_intervals():
    found = tracked(SCORES)
    assert found["gap"] == pytest.approx(
        {"em": 0.2, "em_low": 0.1, "em_high": 0.3, "content": 0.3, "content_low": 0.2, "content_high": 0.4}
    )
    assert found["dev"] == {"gap": {"em": -0.5, "em_low": -1.0, "em_high": 0.0}}
    assert found["explanation"] == {"self": {"em": 0.6}} and "sources" not in found
    assert "dev" not in tracked({**SCORES, "dev": None})


def test_a_sweep_tracks_its_gaps_by_value(tmp_path):
    points = [{"kl_weight": value, "gap": GAPS} for value in (0.0, 1.0)]
    store = open_store(tmp_path)
    store.write_json("sweep.json", {"rows": [], "aggregate": points})
    with JsonlTracker(str(tmp_path)) as tracker:
        track_aggregate(tracker, store, "kl_weight")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["kl_weight"], row["gap.em"]) for row in rows] == [(0, 0.0, 0.2), (1, 1.0, 0.2)]
    assert rows[1]["gap.content_high"] == pytest.approx(0.4)


def test_a_sweep_chooses_by_the_dev_split():
    """What it chooses by is not what is reported; without a dev split there is nothing else."""
    assert gap(SCORES) == -0.5 and gap({**SCORES, "dev": None}) == 0.2
