"""Ray Tune over one swept key and seeds: one tracked parent run, one child run per trial, the same engines for all."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from introspect_ray.config import RunConfig
from introspect_ray.errors import AlarmError, UserError, one_line
from introspect_ray.runs.cluster import this_node_resource
from introspect_ray.runs.driver import train_once
from introspect_ray.runs.results import open_tracker
from introspect_ray.runs.search_space import Space, trial_config
from introspect_ray.runs.setup import SharedSetup, untrained_scores
from introspect_ray.scores.aggregate import aggregate
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.evaluation_table import TRAINED, from_table, read_parquet
from introspect_ray.scores.figures import sweep_figure
from introspect_ray.scores.metrics import constant_explainer
from introspect_ray.storage import Store, open_store


def run_sweep(
    cfg: RunConfig,
    space: Space,
    values: Sequence[Any],
    seeds: Sequence[int],
    setup: SharedSetup,
    tracking: tuple[str | None, str | None],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run all trials that have no summary yet; write sweep.json ("rows": a summary per trial; "aggregate": see
    scores/aggregate.py) and sweep.png.

    Returns the summaries, and {swept key, "seed", "failed": reason} of each trial that an alarm or a divergence
    stopped. tracking: (MLflow URI, parent run id). Raises RuntimeError if trials failed for other reasons, after the
    results of the others are written.
    """

    def trial(params: dict[str, Any], setup: SharedSetup) -> None:
        run = trial_config(cfg, space, params["value"], params["seed"])
        store = open_store(run.output_dir)
        row = {space.leaf: params["value"], "seed": params["seed"]}
        try:
            if not store.exists("summary.json"):
                name = run.output_dir.rsplit("/", 1)[-1]
                with open_tracker(run, name, *tracking) as tracker:
                    train_once(run, setup, tracker, run_name=name)
        except (AlarmError, UserError) as error:  # reported as a result: a raised error would come back as text
            tune.report({"objective": math.nan, "row": {**row, "failed": one_line(error)}})
            return
        row |= store.read_json("summary.json")
        tune.report({"objective": space.objective(row), "row": row})

    room = {"cpu": 0, this_node_resource(): 0.001}
    with tempfile.TemporaryDirectory() as scratch:
        grid = tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, setup=setup), room),  # passed by reference
            param_space={"value": tune.grid_search(list(values)), "seed": tune.grid_search(list(seeds))},
            # One process for all trials: starting one and its imports take longer than a short trial's evaluation.
            tune_config=tune.TuneConfig(max_concurrent_trials=1, metric="objective", mode="max", reuse_actors=True),
            run_config=tune.RunConfig(name="tune", storage_path=scratch, verbose=0),
        ).fit()
    rows = [result.metrics["row"] for result in grid if result.error is None]
    rows.sort(key=lambda row: (row[space.leaf], row["seed"]))
    done, stopped = ([row for row in rows if ("failed" in row) is failed] for failed in (False, True))
    store = open_store(cfg.output_dir)
    points = aggregate(done, [_cases(cfg, space, row) for row in done], [space.leaf])
    store.write_json("sweep.json", {"rows": [*done, *stopped], "aggregate": points})
    if done:
        _draw(done, space.leaf, points, setup, store)
    failed = [str(result.error).strip().splitlines()[-1] for result in grid if result.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(grid)} trials failed, the first with: {failed[0]}")
    return done, stopped


def _cases(cfg: RunConfig, space: Space, row: dict[str, Any]) -> EvaluatedCases:
    """The evaluated cases of a finished trial."""
    trial = trial_config(cfg, space, row[space.leaf], row["seed"])
    return from_table(read_parquet(open_store(trial.output_dir).read_bytes(TRAINED)))


def _draw(
    summaries: list[dict[str, Any]], key: str, points: list[dict[str, Any]], setup: SharedSetup, store: Store
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        figure = Path(folder, "sweep.png")
        sweep_figure(
            summaries,
            key,
            figure,
            values=[summary[key] for summary in summaries],
            points=points,
            untrained=untrained_scores(setup)["explanation"]["orig"]["em"],
            constant=constant_explainer(setup.m0_reported)[1],
        )
        store.write_bytes("sweep.png", figure.read_bytes())
