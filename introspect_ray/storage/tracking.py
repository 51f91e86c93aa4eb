"""Where a run's parameters, metrics and files go: always <output_dir>/metrics.jsonl, by default MLflow too.

MLflow is imported when the first run is opened (about 2.5 s). The driver creates its store and experiment once: several
writers on a new SQLite store race in its migration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from introspect_ray.config import TrackingConfig
from introspect_ray.errors import UserError
from introspect_ray.storage import is_remote, open_store
from introspect_ray.storage.tracker import Dataset, Status, Tracker, TrainedPolicy
from introspect_ray.storage.tracking_calls import Target
from introspect_ray.storage.tracking_jsonl import JsonlTracker


def make_tracker(
    tracking: TrackingConfig,
    output_dir: str,
    run_name: str,
    *,
    uri: str | None = None,
    parent_run_id: str | None = None,
) -> Tracker:
    """The tracker of one run: metrics.jsonl always; params.json and artifacts too unless the backend is "none".

    `uri` overrides tracking.uri (a trial writes into its parent's store). A run that MLflow has already is continued.
    Raises UserError if MLflow cannot be used for a new run (tracking_queue.open_queue).
    """
    if tracking.backend != "mlflow":
        return JsonlTracker(output_dir, metrics_only=tracking.backend == "none")
    from introspect_ray.storage.tracking_queue import open_queue

    target = Target(uri or tracking_uri(tracking, output_dir), tracking.experiment, run_name, parent_run_id)
    queue = open_queue(open_store(output_dir), target, tracking.patience_s)
    return CompositeTracker(JsonlTracker(output_dir, artifacts=False), queue)


def tracking_uri(tracking: TrackingConfig, output_dir: str) -> str:
    """The MLflow URI of a run: tracking.uri, else an SQLite store in the output folder; SQLite paths made absolute.

    Raises UserError for an SQLite store on S3.
    """
    if tracking.uri is None:
        if is_remote(output_dir):
            raise UserError(
                f"tracking: MLflow's SQLite store cannot lie in {output_dir}: set tracking.uri to an MLflow server "
                "or a local sqlite:/// path, or tracking.backend=jsonl"
            )
        return f"sqlite:///{Path(output_dir).expanduser().absolute() / 'mlflow.db'}"
    prefix = "sqlite:///"
    if tracking.uri.startswith(prefix):  # a worker may have another working folder
        return prefix + str(Path(tracking.uri.removeprefix(prefix)).expanduser().absolute())
    return tracking.uri


class CompositeTracker(Tracker):
    """Several trackers as one; each is told, even if another one fails."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers
        self.uri = next((t.uri for t in trackers if t.uri), None)
        self.known = any(t.known for t in trackers)

    @property
    def run_id(self) -> str | None:  # type: ignore[override]
        return next((t.run_id for t in self._trackers if t.run_id), None)

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """Raises the first error, when all have been called."""
        errors = []
        for tracker in self._trackers:
            try:
                call(tracker)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.log_params(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        self._each(lambda tracker: tracker.log_metrics(metrics, step))

    def log_step(self, row: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.log_step(row))

    def log_result(self, metrics: Mapping[str, Any], step: int, policy: TrainedPolicy | None = None) -> None:
        self._each(lambda tracker: tracker.log_result(metrics, step, policy))

    def announce(self, names: Sequence[str]) -> None:
        self._each(lambda tracker: tracker.announce(names))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self._each(lambda tracker: tracker.log_tags(tags))

    def describe(self, text: str) -> None:
        self._each(lambda tracker: tracker.describe(text))

    def log_datasets(self, datasets: Sequence[Dataset]) -> None:
        self._each(lambda tracker: tracker.log_datasets(datasets))

    def show_runs_by(self, keys: Sequence[str]) -> None:
        self._each(lambda tracker: tracker.show_runs_by(keys))
        self.page = next((t.page for t in self._trackers if t.page), None)

    def log_file(self, name: str, folder: str = "") -> None:
        self._each(lambda tracker: tracker.log_file(name, folder))

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def close(self, status: Status = "FINISHED") -> None:
        self._each(lambda tracker: tracker.close(status))
