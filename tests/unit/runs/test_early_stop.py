"""A trial that the scheduler stopped early is a result of its own, and is not run again."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import ASHAScheduler

from introspect_ray.config import load_config
from introspect_ray.errors import AlarmError, UserError
from introspect_ray.runs.results import FAILED, STOPPED
from introspect_ray.runs.sweep import trial_row
from introspect_ray.runs.tuning import Endings, scheduler
from introspect_ray.storage import open_store


@contextmanager
def place(error):
    raise error
    yield


def test_what_has_ended_takes_no_place_and_does_not_run(tmp_path):
    """Neither one with a summary nor one that was stopped."""
    whole = {"gap": {}, "cases": {"test": 0}}
    for name, row in (("summary.json", whole), (STOPPED, {"stopped": "by the scheduler", "steps": 5})):
        run = load_config(overrides={"output_dir": str(tmp_path / name), "steps": 0})
        open_store(run.output_dir).write_json(name, row)
        assert trial_row(run, lambda: place(AssertionError("it asked for a place")), (None, None)) == row


@pytest.mark.parametrize(("error", "kept"), [(AlarmError("a bound"), True), (UserError("bad input"), False)])
def test_what_would_fail_again_is_a_result(tmp_path, error, kept):
    run = load_config(overrides={"output_dir": str(tmp_path)})
    assert trial_row(run, lambda: place(error), (None, None)) == {"failed": str(error)}
    assert open_store(run.output_dir).exists(FAILED) is kept


def test_what_may_pass_is_raised_for_tune_to_try_again(tmp_path):
    run = load_config(overrides={"output_dir": str(tmp_path)})
    with pytest.raises(RuntimeError, match="node is gone"):
        trial_row(run, lambda: place(RuntimeError("node is gone")), (None, None))


def test_the_end_of_a_trial_from_outside_is_kept_and_frees_its_place(tmp_path):
    runs, left = [load_config(overrides={"output_dir": str(tmp_path / name)}) for name in "ab"], []
    slots = SimpleNamespace(leave_when_dead=SimpleNamespace(remote=left.append))
    endings = Endings(slots, runs)

    def trial(number, row):
        return SimpleNamespace(config={"trial": number}, last_result={"row": row})

    endings.on_trial_complete(0, [], trial(0, {"gap": {}}))  # it has left by itself
    endings.on_trial_complete(0, [], trial(1, {"stopped": "early", "steps": 5}))
    endings.on_trial_error(0, [], trial(0, {}))
    assert left == [1, 0]
    assert open_store(runs[1].output_dir).read_json(STOPPED) == {"stopped": "early", "steps": 5}
    assert not open_store(runs[0].output_dir).exists(STOPPED)


def test_rungs_begin_at_the_first_score():
    cfg = load_config(overrides={"sweep.scheduler": "asha", "eval.every": 5, "steps": 40})
    made = scheduler(cfg, [cfg])
    assert isinstance(made, ASHAScheduler)
    assert [step for step, _ in made._brackets[0]._rungs] == [15, 5]
    assert scheduler(load_config(), []) is None
