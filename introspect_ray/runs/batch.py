"""Trainings and evaluations of many configs, on as few set-ups as they allow. Experiments are run by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from introspect_ray.config import RunConfig
from introspect_ray.runs import jobs
from introspect_ray.runs.printed import report_findings
from introspect_ray.runs.results import FAILED
from introspect_ray.runs.search_space import by_setup, shared_config
from introspect_ray.storage import open_store
from introspect_ray.storage.tracking import tracking_uri

Say = Callable[[str], None]


def run_batch(trainings: Sequence[RunConfig], evaluations: Sequence[RunConfig], say: Say) -> list[str]:
    """Train and evaluate what has no result yet; each config's output_dir gets its own files.

    Trainings that differ in SWEEPABLE keys alone share engines, M0's labels and its reference, and are the trials of
    one Tune run. Ray starts once, and not at all if nothing is missing. Returns the last lines of errors other than
    alarms (a divergence is one); the other runs are finished. Raises UserError for a config that cannot run, before its
    group starts.
    """
    missing = [cfg for cfg in trainings if not has_result(cfg)]
    unscored = [cfg for cfg in evaluations if not has_result(cfg)]
    if not missing and not unscored:
        return []
    from introspect_ray.runs.cluster import connected

    groups = by_setup(missing)
    errors: list[str] = []
    with connected(*_widest([*((shared_config(group), group) for group in groups), *((cfg, ()) for cfg in unscored)])):
        for number, group in enumerate(groups, start=1):
            began = time.perf_counter()
            errors += _train_group(group)
            took = time.perf_counter() - began
            say(f"set-up {number} of {len(groups)}: {len(group)} runs in {took:.0f} s")
        for number, cfg in enumerate(unscored, start=1):
            began = time.perf_counter()
            _evaluate(cfg)
            say(f"evaluation {number} of {len(unscored)}: {time.perf_counter() - began:.0f} s")
    return errors


def _widest(rooms: Sequence[tuple[RunConfig, Sequence[RunConfig]]]) -> tuple[RunConfig, Sequence[RunConfig]]:
    """Which set-up with its trials needs the most room of a local Ray."""
    from introspect_ray.runs.nodes import local_at_once, local_need

    def cpus(room: tuple[RunConfig, Sequence[RunConfig]]) -> float:
        cfg, trials = room
        return local_need(cfg, trials, local_at_once(cfg, trials))["CPU"]

    return max(rooms, key=cpus)


def has_result(cfg: RunConfig) -> bool:
    """Whether the config's folder holds a summary, an evaluation, or the reason why an alarm stopped it."""
    return result_of(cfg) is not None


def result_of(cfg: RunConfig) -> dict[str, Any] | None:
    """summary.json, evaluation.json or {"failed": reason} of the config's folder; None without any of them."""
    store = open_store(cfg.output_dir)
    for name in ("summary.json", "evaluation.json", FAILED):
        if store.exists(name):
            found: dict[str, Any] = store.read_json(name)
            return found
    return None


def _train_group(group: Sequence[RunConfig]) -> list[str]:
    """The trials of one set-up, whose engines end with it. Returns the errors that are no alarms."""
    from introspect_ray.runs.preflight import prepare
    from introspect_ray.runs.progress import progress_bar
    from introspect_ray.runs.setup import set_up
    from introspect_ray.runs.sweep import run_trials

    shared = shared_config(group)
    mlflow = shared.tracking.backend == "mlflow"
    uri = tracking_uri(shared.tracking, shared.cache_dir or shared.output_dir) if mlflow else None
    setup = set_up(shared, prepare(shared))
    try:
        report_findings(shared, setup)
        with progress_bar(setup.status, sum(cfg.steps for cfg in group), f"{len(group)} runs"):
            rows, errors = run_trials(group, setup, (uri, None))
    finally:
        setup.close()
    return [*errors, *_unkept(group, rows)]


def _unkept(group: Sequence[RunConfig], rows: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """The reasons of trials that stopped and left none in their folder: no alarm, but a divergence or a bad input."""
    pairs = zip(group, rows, strict=True)
    return [str(row["failed"]) for cfg, row in pairs if row is not None and "failed" in row and not has_result(cfg)]


def _evaluate(cfg: RunConfig) -> None:
    with jobs.local_trained_policy(cfg, overwrite=False) as local:
        jobs.run_evaluation(cfg, local, jobs.check_evaluation(local, resume=True, overwrite=False))
