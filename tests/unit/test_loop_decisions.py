"""The schedule of the loop, and its gap to the engines."""

from __future__ import annotations

import pytest

from introspect_ray.config import load_config
from introspect_ray.labels.alarms import engine_gap
from introspect_ray.records import BehaviorPair
from introspect_ray.schedule import label_version, steps_of_version


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
    """Requests at the published versions cover all steps exactly once, none after its own step (else a deadlock),
    and never more than lag + sync_every ahead (the buffer's bound)."""
    cfg = config(20, lag, sync_every)
    requested = [(t, v) for v in range(0, 20, sync_every) for t in steps_of_version(v, cfg)]
    assert sorted(t for t, _ in requested) == list(range(20))
    for step, version in requested:
        assert version == label_version(step, lag, sync_every)
        assert version <= step < version + lag + sync_every


def test_engine_gap_by_hand():
    pair = BehaviorPair("c", "A", "B", (-0.1, -2.4), (-1.9, -0.2), False, False, 0)
    assert engine_gap([pair], {"c": ((-0.1, -2.4), (-1.9, -0.5))}) == pytest.approx(0.3)
    assert engine_gap([], {}) is None
