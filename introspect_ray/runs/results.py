"""The results of a run: its tracker, summary.json and artifacts. Reads and writes stores; no Ray."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from introspect_ray.config import RunConfig
from introspect_ray.labels.reading import Reading
from introspect_ray.scores.evaluation_table import TRAINED, UNTRAINED
from introspect_ray.scores.summary import make_summary
from introspect_ray.scores.training_figure import training_figure
from introspect_ray.storage import Store, open_store
from introspect_ray.storage.tracker import Tracker
from introspect_ray.storage.tracking import JsonlTracker, make_tracker

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
    store = open_store(cfg.output_dir)
    before = store.read_json("tracking.json") if store.exists("tracking.json") else {}
    known = before["run_id"] if before and before["uri"] == uri else None
    tracker = make_tracker(cfg.tracking, cfg.output_dir, name, uri=uri, parent_run_id=parent_run, run_id=known)
    if known is None:  # once: MLflow refuses a changed parameter, and a resume may change a few
        tracker.log_params(params or cfg.model_dump(mode="json"))
        store.write_json("tracking.json", {"uri": tracker.uri, "run_id": tracker.run_id})
    return tracker


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
    """The run's step metrics from metrics.jsonl: the last row of every step, as a resumed run repeats some."""
    lines = map(json.loads, store.read_bytes(JsonlTracker.NAME).decode().splitlines())
    rows = {row["step"]: row for row in lines if "loss" in row}
    return [rows[step] for step in sorted(rows)]


def missing_rows(rows: Sequence[dict[str, Any]], steps: int) -> list[str]:
    """One line if metrics.jsonl lacks steps of a finished run: a driver that dies loses rows it has not written."""
    gone = sorted(set(range(steps)) - {row["step"] for row in rows})
    if not gone:
        return []
    return [
        f"metrics.jsonl has {len(rows)} of {steps} steps, without {len(gone)} from step {gone[0]} to {gone[-1]} (lost "
        "with an earlier driver, or refused): realised_at_consumption and training.png are of the others"
    ]


def track_results(tracker: Tracker, store: Store, out: dict[str, Any], rows: list[dict]) -> None:
    """Final scores as metrics; summary, label table and the training curves as artifacts."""
    tracker.log_metrics({**tracked(out), "labels": out["labels"], "timing_s": out["timing_s"]}, out["steps"])
    if rows:
        with tempfile.TemporaryDirectory() as folder:
            training_figure(rows, f"{folder}/training.png")
            store.write_bytes("training.png", Path(folder, "training.png").read_bytes())
    log_files(tracker, store, ["summary.json", "details.json", *(["training.png"] if rows else [])])
    log_files(tracker, store, [UNTRAINED, TRAINED], "evaluation")
    log_files(tracker, store, store.list("labels"), "labels")


def log_files(tracker: Tracker, store: Store, names: Sequence[str], folder: str = "") -> None:
    """Log files of the store as artifacts of the run."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            local = Path(scratch, Path(name).name)
            local.write_bytes(store.read_bytes(name))
            tracker.log_artifact(local, folder)


def tracked(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of an evaluation under the names of a tracker: gap.em, gap.em_low, explanation.self.em, ...

    Groups are left out: their names are the task's, and trackers refuse many characters.
    """
    blocks = ("explanation", "behavior", "disagreement", "sources")
    found: dict[str, Any] = {"gap": gap_metrics(scores["gap"])}
    if scores["dev"] is not None:
        found["dev"] = {"gap": gap_metrics(scores["dev"]["gap"])}
    return {**found, **numbers_of({block: scores[block] for block in blocks if scores[block] is not None})}


def gap_metrics(gaps: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Gaps by part, as in summary.json or sweep.json, as metrics: em, em_low and em_high, content, ..."""
    found: dict[str, float] = {}
    for part, gap in gaps.items():
        found |= {part: gap["value"], f"{part}_low": gap["ci"][0], f"{part}_high": gap["ci"][1]}
    return found


def track_aggregate(tracker: Tracker, store: Store, key: str) -> None:
    """The gaps over seeds of sweep.json as metrics of the sweep's own run: gap.em, gap.em_low, ...; step: the rank
    of the swept value from 0 on, which itself is metric `key` where it is a number."""
    for step, point in enumerate(store.read_json("sweep.json")["aggregate"]):
        value = {key: point[key]} if isinstance(point[key], int | float) else {}
        tracker.log_metrics({**value, "gap": gap_metrics(point["gap"])}, step)


def numbers_of(tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` without what metrics cannot hold: lists, which are confidence intervals."""
    kept = {key: numbers_of(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in kept.items() if not isinstance(value, list | tuple)}
