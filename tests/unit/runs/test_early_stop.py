"""A trial that the scheduler stopped early is a result of its own, and is not run again."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import ASHAScheduler

from introspect_ray import signals
from introspect_ray.config import load_config
from introspect_ray.errors import AlarmError, Halted, UserError
from introspect_ray.runs import sweep
from introspect_ray.runs.results import FAILED, STOPPED
from introspect_ray.runs.sweep import trial_row
from introspect_ray.runs.tuning import Endings, Halting, scheduler
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


def test_a_job_that_ends_waits_for_the_trials_under_way_alone(monkeypatch):
    """Trial 0 is over and 1 and 2 run when the signal comes; 3 is started by Tune in the place that 1 leaves."""
    endings = Endings(None, [])
    halting = Halting(endings)

    def trial(number):
        return SimpleNamespace(config={"trial": number}, last_result={})

    for number in range(3):
        endings.on_trial_start(0, [], trial(number))
    endings.on_trial_complete(0, [], trial(0))
    assert not halting.stop_all()
    monkeypatch.setattr(signals, "asked", lambda: "SIGTERM")
    assert not halting.stop_all()
    endings.on_trial_complete(0, [], trial(1))
    endings.on_trial_start(0, [], trial(3))
    assert not halting.stop_all()
    endings.on_trial_error(0, [], trial(2))
    assert halting.stop_all()


def test_a_trial_that_would_start_while_the_job_ends_takes_no_place(tmp_path, monkeypatch):
    run = load_config(overrides={"output_dir": str(tmp_path)})
    monkeypatch.setattr(sweep, "halting", lambda board: board)
    refused = lambda: place(AssertionError("it asked for a place"))  # noqa: E731
    assert trial_row(run, refused, (None, None), status=True) == {"halted": "it has not started"}
    with pytest.raises(AssertionError, match="it asked for a place"):
        trial_row(run, refused, (None, None), status=False)


def test_what_an_ended_sweep_says(tmp_path, monkeypatch):
    """Of four trials one was stopped by the scheduler, one has a checkpoint, one waited and one was never reached."""
    runs = [load_config(overrides={"output_dir": str(tmp_path / name)}) for name in "abcd"]
    open_store(runs[0].output_dir).write_json("stopped.json", {"stopped": "by the scheduler"})
    ends = ("the checkpoint of step 3 is stored", "it has not started")
    reports = [{"row": {"gap": {}}}, *({"row": {"halted": end}} for end in ends), {}]
    sweep._raise_halted(runs, reports)  # nobody asked
    monkeypatch.setattr(signals, "asked", lambda: "SIGINT")
    with pytest.raises(
        Halted, match=r"^3 of 4 trials are left, 1 of them under way \(the checkpoint of step 3 is store"
    ):
        sweep._raise_halted(runs, reports)


def test_rungs_begin_at_the_first_score():
    cfg = load_config(overrides={"sweep.scheduler": "asha", "eval.every": 5, "steps": 40})
    made = scheduler(cfg, [cfg])
    assert isinstance(made, ASHAScheduler)
    assert [step for step, _ in made._brackets[0]._rungs] == [15, 5]
    assert scheduler(load_config(), []) is None
