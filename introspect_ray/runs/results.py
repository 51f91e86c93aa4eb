"""The results of a run: its tracker, summary.json and artifacts. Reads and writes stores; no Ray."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from introspect_ray.config import RunConfig
from introspect_ray.errors import one_line
from introspect_ray.labels.reading import Reading
from introspect_ray.runs.tracked import (
    HEADLINE,
    point_metrics,
    run_description,
    run_tags,
    sweep_description,
    tracked,
    trained_policy,
)
from introspect_ray.scores.evaluation_table import TRAINED, UNTRAINED
from introspect_ray.scores.summary import make_summary
from introspect_ray.scores.training_figure import training_figure
from introspect_ray.storage import Store
from introspect_ray.storage.tracker import Dataset, Tracker
from introspect_ray.storage.tracking import make_tracker
from introspect_ray.storage.tracking_jsonl import read_rows

STOPPED = "stopped.json"  # in the folder of a trial that the scheduler stopped early: {"stopped": reason, ...}
FAILED = "failed.json"  # in the folder of a trial that an alarm stopped: {"failed": reason}

MOST_WARNINGS = 5  # of one kind that are printed; where each question has labels of its own there may be hundreds


def warned(lines: Sequence[str]) -> list[str]:
    """Print the first lines as warnings, and how many more there are; returns all of them."""
    for line in lines[:MOST_WARNINGS]:
        print(f"warning: {line}", file=sys.stderr, flush=True)
    if len(lines) > MOST_WARNINGS:
        print(f"warning: and {len(lines) - MOST_WARNINGS} more of this kind", file=sys.stderr, flush=True)
    return list(lines)


def open_tracker(
    cfg: RunConfig, name: str, uri: str | None, parent_run: str | None = None, params: dict[str, Any] | None = None
) -> Tracker:
    """The tracker of a run, with its parameters logged. A resumed run continues the MLflow run of tracking.json."""
    tracker = make_tracker(cfg.tracking, cfg.output_dir, name, uri=uri, parent_run_id=parent_run)
    if not tracker.known:  # once: MLflow refuses a changed parameter, and a resume may change a few
        _introduce(tracker, cfg, params)
    return tracker


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """An error of a tracker in the body is a warning: the run's own results are written, or still to come."""
    try:
        yield
    except Exception as error:
        warned([f"{what}: {one_line(error)}; the run goes on"])


def _introduce(tracker: Tracker, cfg: RunConfig, sweep: dict[str, Any] | None) -> None:
    """What is known of a run before it starts. The folder is a tag: as a parameter it would be one of the few that a
    page which compares runs draws, as it differs between all of them."""
    if sweep is not None:
        keys = sweep["sweep"]["key"].split(",")
        tracker.log_params(sweep)
        tracker.log_tags({**run_tags(cfg, (*keys, "seed")), "sweep": ",".join(keys)})
        tracker.show_runs_by(keys)
        return
    tracker.announce(HEADLINE)
    tracker.log_params({key: value for key, value in cfg.model_dump(mode="json").items() if key != "output_dir"})
    tracker.log_tags(run_tags(cfg))
    tracker.describe(run_description(cfg))


def run_summary(
    cfg: RunConfig,
    cases: Mapping[str, int],
    scores: dict[str, Any],
    how_read: tuple[Reading, Sequence[Mapping[str, Any]]],
    totals: dict[str, Any],
    rows: list[dict[str, Any]],
    shared: dict[str, float],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The content of summary.json. Time in Ray Train outside training, labelling, waiting and syncing counts as set-up.

    cases: see summary.Cases. how_read: by which calibration, and the judges' reports on free text.
    totals: of rank 0 and the relabeler, over the run. shared: seconds of the set-up that the trials of a sweep share
    ("setup", "eval"). seconds: of this run ("train", "eval").
    """
    waited = sum(totals[part] for part in ("train", "sync", "label", "wait"))
    found = (row.get("realised_at_consumption") for row in rows)  # a tracker leaves out what is unknown (free text)
    consumed = [share for share in found if share is not None]
    return make_summary(
        cfg,
        scores,
        cases=cases,
        calibration=how_read[0].summary,
        judges=how_read[1] or None,
        labels={
            "requested_agreement": cfg.supervision.agreement if cfg.supervision.rule == "online" else None,
            "realised_at_labelling": totals["realised_at_labelling"],
            "realised_at_consumption": sum(consumed) / len(consumed) if consumed else None,
            "split_pairs": totals["split_pairs"],
        },
        timing={
            "setup": shared["setup"] + seconds["train"] - waited,
            "rollout": totals["rollout_s"] + totals["label"],  # by the engines (all actors), by the learner (rank 0)
            "relabel": totals["relabel_s"],
            "train": totals["train"],
            "sync": totals["sync"],
            "eval": shared["eval"] + seconds["eval"],
            "total": sum(shared.values()) + sum(seconds.values()),
        },
    )


def step_rows(store: Store) -> list[dict[str, Any]]:
    """The run's step metrics from metrics.jsonl: the last row of every step, as a resumed run repeats some. What is
    not a whole row, after a full disk or a kill of version 0.1, is left out."""
    rows = {row["step"]: row for row in read_rows(store)[0] if "loss" in row}
    return [rows[step] for step in sorted(rows)]


def missing_rows(rows: Sequence[dict[str, Any]], steps: int) -> list[str]:
    """One line if metrics.jsonl lacks steps of a finished run: a driver that dies loses rows it has not written."""
    gone = sorted(set(range(steps)) - {row["step"] for row in rows})
    if not gone:
        return []
    return [
        f"metrics.jsonl has {len(rows)} of {steps} steps, without {len(gone)} from step {gone[0]} to {gone[-1]}: "
        "realised_at_consumption and training.png are of the others"
    ]


def track_results(
    tracker: Tracker,
    store: Store,
    cfg: RunConfig,
    out: dict[str, Any],
    rows: list[dict],
    scored_on: Dataset | None = None,
) -> None:
    """Final scores as metrics of the run and of its policy; summary, label table and the training curves as artifacts.

    scored_on: the held-out cases.
    """
    result = {**tracked(out), "labels": out["labels"], "timing_s": out["timing_s"]}
    tracker.log_result(result, out["steps"], trained_policy(cfg, store.join("policy"), scored_on))
    tracker.describe(run_description(cfg, out))
    if rows:
        with tempfile.TemporaryDirectory() as folder:
            training_figure(rows, f"{folder}/training.png")
            store.write_bytes("training.png", Path(folder, "training.png").read_bytes())
    log_files(tracker, ["summary.json", "details.json", *(["training.png"] if rows else [])])
    log_files(tracker, [UNTRAINED, TRAINED], "evaluation")
    log_files(tracker, store.list("labels"), "labels")


def log_files(tracker: Tracker, names: Sequence[str], folder: str = "") -> None:
    """Log files of the run's output folder as its artifacts. One that cannot be copied is a warning."""
    for name in names:
        with tolerated(f"a copy of {name}"):
            tracker.log_file(name, folder)


def track_aggregate(tracker: Tracker, store: Store, cfg: RunConfig, keys: Sequence[str]) -> None:
    """The gaps over seeds of sweep.json as metrics of the sweep's own run, one step per point, and as a table in its
    description. keys: the last parts of the swept keys."""
    points = store.read_json("sweep.json")["aggregate"]
    with tolerated("tracking of the sweep"):  # sweep.json is written by now
        for step, point in enumerate(points):
            tracker.log_metrics(point_metrics(point, keys), step)
        tracker.describe(sweep_description(cfg, keys, points))
