"""Ray Tune over trials that share a set-up: one tracked parent run, one child run per trial, M0's labels for all.

A sweep over one key, a joint grid and the runs of an experiment are all lists of trials.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from introspect_ray import signals
from introspect_ray.config import RunConfig
from introspect_ray.errors import AlarmError, Halted, Incomplete, UserError, one_line
from introspect_ray.runs.cluster import this_node_resource
from introspect_ray.runs.complete import finished
from introspect_ray.runs.driver import train_once
from introspect_ray.runs.interim import OnScores
from introspect_ray.runs.kept_workers import keeping
from introspect_ray.runs.nodes import at_once
from introspect_ray.runs.recovery import halting
from introspect_ray.runs.results import FAILED, STOPPED, open_tracker, warned
from introspect_ray.runs.search_space import Space, Trial, gap, shared_config
from introspect_ray.runs.setup import SharedSetup, untrained_scores
from introspect_ray.runs.slots import engines_shared
from introspect_ray.runs.trial_slots import open_slots, place_for
from introspect_ray.runs.tuning import OBJECTIVE, STEP, Endings, Halting, reporter, scheduler
from introspect_ray.scores.aggregate import aggregate
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.evaluation_table import TRAINED, from_table, read_parquet
from introspect_ray.scores.figures import sweep_figure
from introspect_ray.scores.grid import grid_figure
from introspect_ray.scores.metrics import constant_explainer
from introspect_ray.storage import Store, open_store

HALTED, NOT_STARTED = "halted", "it has not started"


def run_trials(
    trials: Sequence[RunConfig], setup: SharedSetup, tracking: tuple[str | None, str | None]
) -> tuple[list[dict[str, Any] | None], list[str]]:
    """Run each trial that has no summary yet, as many at once as there is room for; one after another on the engines of
    `setup` where it is for one.

    tracking: (MLflow URI, parent run id). Returns, in the order of `trials`, each one's summary, {"failed": reason} of
    one that an alarm or a divergence stopped, {"stopped": reason} of one that the scheduler did, or None for one that
    failed otherwise; and the last lines of those errors. A summary is kept in the trial's folder, and so is the reason
    why an alarm or the scheduler stopped it. Raises Halted if the job was asked to end before all trials had ended.
    """
    cfg, missing = shared_config(trials), [one for one in trials if not _has_ended(one)]
    count = at_once(cfg, missing)
    shared = count > 1 and engines_shared(missing)
    if count > 1:
        print(f"trials   up to {count} of {len(missing)} at once", flush=True)
    with keeping(setup, cfg, len(missing) > count) as kept:
        slots = open_slots(cfg, kept, count, len(missing), shared)
        results = _tuned(trials, kept, count, slots, shared, tracking)
    for one in (one for one in missing if open_store(one.output_dir).exists(STOPPED)):
        with open_tracker(one, one.output_dir.rsplit("/", 1)[-1], *tracking):
            pass  # its process could not close it
    rows: list[dict[str, Any] | None] = [None] * len(trials)
    for result in results:
        if result.error is None and "row" in (result.metrics or {}):
            rows[result.metrics["trial"]] = result.metrics["row"]
    return rows, [str(result.error).strip().splitlines()[-1] for result in results if result.error is not None]


def _tuned(
    trials: Sequence[RunConfig],
    setup: SharedSetup,
    count: int,
    slots: Any,
    shared: bool,
    tracking: tuple[str | None, str | None],
) -> tune.ResultGrid:
    """What Ray Tune makes of the trials. slots, shared: see `place_for`. Raises Halted as run_trials."""
    cfg = shared_config(trials)

    def trial(params: dict[str, Any], setup: SharedSetup) -> None:
        number = params["trial"]
        place = partial(place_for, number, setup, slots, shared)
        row = trial_row(trials[number], place, tracking, reporter(number), setup.status)
        value = gap(row) if "gap" in row else math.nan  # one that was stopped has none
        tune.report({OBJECTIVE: value, STEP: trials[number].steps, "row": row, "trial": number})

    with signals.gently(setup.status.halt.remote), tempfile.TemporaryDirectory() as scratch:
        by_reference = tune.with_parameters(trial, setup=setup)
        results = _tuner(by_reference, cfg, trials, count, Endings(slots, trials), scratch).fit()
        _raise_halted(trials, [result.metrics or {} for result in results])
    if slots is not None:
        warned(ray.get(slots.notes.remote()))
        ray.kill(slots)
    return results


def _tuner(
    trial: Any, cfg: RunConfig, trials: Sequence[RunConfig], count: int, endings: Endings, scratch: str
) -> tune.Tuner:
    """Ray Tune over the numbers of the trials, `count` of them at once. cfg: of the set-up."""
    return tune.Tuner(
        tune.with_resources(trial, {"cpu": 0, this_node_resource(): 0.001}),
        param_space={"trial": tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=count,
            metric=OBJECTIVE,
            mode="max",
            scheduler=scheduler(cfg, trials),
            # A process per trial that runs, for all that follow: starting one and its imports take longer than a
            # short trial's evaluation. The process of a trial that is stopped early is still at work.
            reuse_actors=cfg.sweep.scheduler == "all",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=scratch,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=cfg.sweep.max_failures),
            callbacks=[endings],
            stop=Halting(endings),
        ),
    )


def trial_row(
    run: RunConfig,
    place: Callable[[], AbstractContextManager[SharedSetup]],
    tracking: tuple[str | None, str | None],
    on_scores: OnScores | None = None,
    status: Any = None,
) -> dict[str, Any]:
    """The summary of a trial, which is run unless it has one; {"failed": reason} if it is bad input, or an alarm or a
    divergence stopped it; {"stopped": reason} if the scheduler had stopped it early before a --resume; {HALTED: where}
    if the job was asked to end.

    place: waits for the resources and engines of a trial. status: handle of the job's StatusBoard, or None. Any other
    error is raised: Tune starts the trial again, and it goes on from its last checkpoint.
    """
    store = open_store(run.output_dir)
    if store.exists(STOPPED):
        stopped: dict[str, Any] = store.read_json(STOPPED)
        return stopped
    name = run.output_dir.rsplit("/", 1)[-1]
    try:
        if (summary := finished(run)) is not None:
            return summary
        _go_on(status)
        with place() as setup:
            _go_on(status)  # it may have waited
            with open_tracker(run, name, *tracking) as tracker:
                return train_once(run, setup, tracker, run_name=name, on_scores=on_scores)
    except Halted as end:
        return {HALTED: one_line(end)}
    except (AlarmError, UserError) as error:  # reported as a result: a raised error would come back as text
        row = {"failed": one_line(error)}
        if isinstance(error, AlarmError):
            store.write_json(FAILED, row)
        return row


def _go_on(status: Any) -> None:
    """Raise Halted if the job was asked to end."""
    if status is not None and halting(status):
        raise Halted(NOT_STARTED)


def _raise_halted(trials: Sequence[RunConfig], reports: Sequence[Mapping[str, Any]]) -> None:
    """Raise Halted if the job was asked to end and trials are left. reports: what the trials said last."""
    left = sum(not _has_ended(one) and not open_store(one.output_dir).exists(FAILED) for one in trials)
    if signals.asked() and left:
        ends = [report["row"][HALTED] for report in reports if HALTED in report.get("row", {})]
        stored = [end for end in ends if end != NOT_STARTED]
        shown = f", {len(stored)} of them under way ({stored[0]})" if stored else ""
        raise Halted(f"{left} of {len(trials)} trials are left{shown}")


def _has_ended(run: RunConfig) -> bool:
    """Whether there is nothing to run: a trial is finished, or has the reason why the scheduler stopped it."""
    try:
        return open_store(run.output_dir).exists(STOPPED) or finished(run) is not None
    except Incomplete:
        return False  # its row says what it lacks


def run_sweep(
    cfg: RunConfig,
    spaces: Sequence[Space],
    trials: Sequence[Trial],
    setup: SharedSetup,
    tracking: tuple[str | None, str | None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run all trials that have not ended yet; write sweep.json ("rows": a summary per trial; "aggregate": see
    scores/aggregate.py) and sweep.png.

    Returns the summaries with their points, and {swept keys, "seed", "failed" or "stopped": reason} of each trial that
    an alarm or a divergence, or the scheduler, stopped. tracking: (MLflow URI, parent run id). Raises RuntimeError if
    trials failed for other reasons, after the results of the others are written.
    """
    results, errors = run_trials([trial.cfg for trial in trials], setup, tracking)
    names = [*(space.leaf for space in spaces), "seed"]
    ran = [(trial, {**trial.point, **row}) for trial, row in zip(trials, results, strict=True) if row is not None]
    ran.sort(key=lambda one: [one[1][name] for name in names])
    done, stopped = ([row for _, row in ran if ("gap" in row) is whole] for whole in (True, False))
    finished = [_cases(trial.cfg) for trial, row in ran if "gap" in row]
    store = open_store(cfg.output_dir)
    points = aggregate(done, finished, [space.leaf for space in spaces])
    store.write_json("sweep.json", {"rows": [*done, *stopped], "aggregate": points})
    if done:
        _draw(done, [space.leaf for space in spaces], points, setup, store)
    if errors:
        raise RuntimeError(f"{len(errors)} of {len(trials)} trials failed, the first with: {errors[0]}")
    return done, stopped


def _cases(cfg: RunConfig) -> EvaluatedCases:
    """The evaluated cases of a finished trial."""
    return from_table(read_parquet(open_store(cfg.output_dir).read_bytes(TRAINED)))


def _draw(
    summaries: list[dict[str, Any]],
    keys: Sequence[str],
    points: list[dict[str, Any]],
    setup: SharedSetup,
    store: Store,
) -> None:
    """Curves over one key of numbers, else a map of the gap over the first two keys."""
    values = [summary[keys[0]] for summary in summaries]
    with tempfile.TemporaryDirectory() as folder:
        figure = Path(folder, "sweep.png")
        if len(keys) == 1 and all(isinstance(value, int | float) for value in values):
            untrained = untrained_scores(setup)["explanation"]["orig"]["em"]
            constant = constant_explainer(setup.m0_reported)[1]
            sweep_figure(
                summaries, keys[0], figure, values=values, points=points, untrained=untrained, constant=constant
            )
        else:
            grid_figure(summaries, keys, figure)
        store.write_bytes("sweep.png", figure.read_bytes())
