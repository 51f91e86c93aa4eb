"""Ray Tune over trials that share a set-up: one tracked parent run, one child run per trial, M0's labels for all.

A sweep over one key, a joint grid and the runs of an experiment are all lists of trials.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ray
from ray import tune

from introspect_ray.config import RunConfig
from introspect_ray.errors import AlarmError, UserError, one_line
from introspect_ray.runs.cluster import this_node_resource
from introspect_ray.runs.driver import train_once
from introspect_ray.runs.nodes import at_once
from introspect_ray.runs.results import FAILED, open_tracker, warned
from introspect_ray.runs.search_space import Space, Trial, gap, shared_config
from introspect_ray.runs.setup import SharedSetup, untrained_scores
from introspect_ray.runs.slots import engines_shared
from introspect_ray.runs.trial_slots import open_slots, place_for
from introspect_ray.scores.aggregate import aggregate
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.evaluation_table import TRAINED, from_table, read_parquet
from introspect_ray.scores.figures import sweep_figure
from introspect_ray.scores.grid import grid_figure
from introspect_ray.scores.metrics import constant_explainer
from introspect_ray.storage import Store, open_store

SUMMARY = "summary.json"


def run_trials(
    trials: Sequence[RunConfig], setup: SharedSetup, tracking: tuple[str | None, str | None]
) -> tuple[list[dict[str, Any] | None], list[str]]:
    """Run each trial that has no summary yet, as many at once as there is room for; one after another on the engines of
    `setup` where it is for one.

    tracking: (MLflow URI, parent run id). Returns, in the order of `trials`, each one's summary, {"failed": reason} of
    one that an alarm or a divergence stopped, or None for one that failed otherwise; and the last lines of those
    errors. A summary is kept in the trial's folder, and so is the reason why an alarm stopped it.
    """
    cfg, missing = shared_config(trials), [one for one in trials if not open_store(one.output_dir).exists(SUMMARY)]
    count = at_once(cfg, missing)
    shared = count > 1 and engines_shared(missing)
    slots = open_slots(cfg, setup, count, len(missing), shared)
    if count > 1:
        print(f"trials   up to {count} of {len(missing)} at once", flush=True)

    def trial(params: dict[str, Any], setup: SharedSetup) -> None:
        number = params["trial"]
        row = trial_row(trials[number], lambda: place_for(number, setup, slots, shared), tracking)
        tune.report({"objective": math.nan if "failed" in row else gap(row), "row": row, "trial": number})

    room = {"cpu": 0, this_node_resource(): 0.001}
    with tempfile.TemporaryDirectory() as scratch:
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, setup=setup), room),  # passed by reference
            param_space={"trial": tune.grid_search(list(range(len(trials))))},
            # A process per trial that runs, for all that follow: starting one and its imports take longer than a short
            # trial's evaluation.
            tune_config=tune.TuneConfig(max_concurrent_trials=count, metric="objective", mode="max", reuse_actors=True),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=cfg.sweep.max_failures),
                callbacks=[Leaving(slots)],
            ),
        ).fit()
    warned(ray.get(slots.notes.remote()))
    ray.kill(slots)
    rows: list[dict[str, Any] | None] = [None] * len(trials)
    for result in results:
        if result.error is None:
            rows[result.metrics["trial"]] = result.metrics["row"]
    return rows, [str(result.error).strip().splitlines()[-1] for result in results if result.error is not None]


class Leaving(tune.Callback):
    """Gives back the place of a trial whose process died and is not started again."""

    def __init__(self, slots: Any) -> None:
        """slots: handle of a TrialSlots."""
        self._slots = slots

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when it gives a trial up."""
        self._slots.leave.remote(trial.config["trial"])


def trial_row(
    run: RunConfig, place: Callable[[], AbstractContextManager[SharedSetup]], tracking: tuple[str | None, str | None]
) -> dict[str, Any]:
    """The summary of a trial, which is run unless it has one; {"failed": reason} if it is bad input, or an alarm or a
    divergence stopped it. place: waits for the resources and engines of a trial.

    Any other error is raised: Tune starts the trial again, and it goes on from its last checkpoint.
    """
    store = open_store(run.output_dir)
    if not store.exists(SUMMARY):
        name = run.output_dir.rsplit("/", 1)[-1]
        try:
            with place() as setup, open_tracker(run, name, *tracking) as tracker:
                train_once(run, setup, tracker, run_name=name)
        except (AlarmError, UserError) as error:  # reported as a result: a raised error would come back as text
            row = {"failed": one_line(error)}
            if isinstance(error, AlarmError):
                store.write_json(FAILED, row)
            return row
    found: dict[str, Any] = store.read_json(SUMMARY)
    return found


def run_sweep(
    cfg: RunConfig,
    spaces: Sequence[Space],
    trials: Sequence[Trial],
    setup: SharedSetup,
    tracking: tuple[str | None, str | None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run all trials that have no summary yet; write sweep.json ("rows": a summary per trial; "aggregate": see
    scores/aggregate.py) and sweep.png.

    Returns the summaries with their points, and {swept keys, "seed", "failed": reason} of each trial that an alarm or a
    divergence stopped. tracking: (MLflow URI, parent run id). Raises RuntimeError if trials failed for other reasons,
    after the results of the others are written.
    """
    results, errors = run_trials([trial.cfg for trial in trials], setup, tracking)
    names = [*(space.leaf for space in spaces), "seed"]
    ran = [(trial, {**trial.point, **row}) for trial, row in zip(trials, results, strict=True) if row is not None]
    ran.sort(key=lambda one: [one[1][name] for name in names])
    done, stopped = ([row for _, row in ran if ("failed" in row) is failed] for failed in (False, True))
    finished = [_cases(trial.cfg) for trial, row in ran if "failed" not in row]
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
