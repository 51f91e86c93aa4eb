"""Ray Tune's side of a sweep: what a trial reports, which scheduler decides, and what becomes of one it stops early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from introspect_ray import signals
from introspect_ray.config import RunConfig
from introspect_ray.runs.results import STOPPED
from introspect_ray.storage import open_store

STEP, OBJECTIVE = "step", "objective"


def scheduler(cfg: RunConfig, trials: Sequence[RunConfig]) -> TrialScheduler | None:
    """sweep.scheduler; None: all trials run to their end. cfg: of the set-up."""
    if cfg.sweep.scheduler == "all":
        return None
    most = max(trial.steps for trial in trials)
    return ASHAScheduler(
        time_attr=STEP, max_t=max(1, most), grace_period=min(cfg.eval.every, max(1, most)),
        reduction_factor=cfg.sweep.reduction,
    )  # fmt: skip


def reporter(trial: int) -> Callable[[int, dict[str, Any]], None]:
    """Reports the scores of a trial while it trains. The row is what stands in sweep.json if it is stopped there."""

    def report(step: int, scores: dict[str, Any]) -> None:
        gap = scores["gap"]["em"]["value"]
        row = {
            "stopped": f"by the scheduler after {step} steps, at a dev gap of {100 * gap:+.1f} points",
            "steps": step,
        }
        tune.report({OBJECTIVE: gap, STEP: step, "row": row, "trial": trial})

    return report


class Endings(tune.Callback):
    """What the driver does when Tune is done with a trial: the place of one whose process is ended is given back, and
    the reason why the scheduler stopped one is kept in its folder, so that --resume does not run it again."""

    def __init__(self, slots: Any, trials: Sequence[RunConfig]) -> None:
        """slots: handle of a TrialSlots, or None."""
        self._slots, self._trials = slots, trials
        self.running: set[int] = set()  # the trials that Tune has started and that have not ended

    def _leave(self, trial: int) -> None:
        if self._slots is not None:
            self._slots.leave_when_dead.remote(trial)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune, also for a trial that it starts again."""
        self.running.add(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when it gives a trial up."""
        self.running.discard(trial.config["trial"])
        self._leave(trial.config["trial"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial has ended, or is stopped early: its last report is an interim one then."""
        self.running.discard(trial.config["trial"])
        row = trial.last_result.get("row", {})
        if "stopped" in row:
            number = trial.config["trial"]
            if signals.asked() is None:  # else it may have ended with the job
                open_store(self._trials[number].output_dir).write_json(STOPPED, row)
            self._leave(number)


class Halting(tune.Stopper):
    """Ends a sweep that is asked to end (signals.py) when the trials that were under way then have ended: each of them
    is given the time for a checkpoint, and none of the others is waited for."""

    def __init__(self, endings: Endings) -> None:
        self._endings = endings
        self._waited_for: set[int] | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by what it reports."""
        return False

    def stop_all(self) -> bool:
        """Asked by Tune all the time."""
        if signals.asked() is None:
            return False
        if self._waited_for is None:
            self._waited_for = set(self._endings.running)
        return not self._waited_for & self._endings.running
