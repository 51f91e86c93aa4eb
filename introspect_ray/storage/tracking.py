"""Where a run's parameters, metrics and artifacts go: always <output_dir>/metrics.jsonl, by default MLflow too.

MLflow is used through MlflowClient only. It is imported when the first run is opened (about 2.5 s) and written in
batches (one call takes 30-100 ms). The driver creates its store and experiment once: several writers on a new SQLite
store race in its migration.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from introspect_ray.config import TrackingConfig, flatten
from introspect_ray.errors import UserError
from introspect_ray.storage import is_remote, open_store
from introspect_ray.storage.tracker import Dataset, Status, Tracker, TrainedPolicy, numbers

_log = logging.getLogger(__name__)


def make_tracker(
    tracking: TrackingConfig,
    output_dir: str,
    run_name: str,
    *,
    uri: str | None = None,
    parent_run_id: str | None = None,
    run_id: str | None = None,
) -> Tracker:
    """The tracker of one run: metrics.jsonl always; params.json and artifacts too unless the backend is "none".

    `uri` overrides tracking.uri (a trial writes into its parent's store); `run_id` continues a run.
    Raises UserError if MLflow cannot be used; a trial of a sweep goes on without it, with a warning.
    """
    if tracking.backend != "mlflow":
        return JsonlTracker(output_dir, metrics_only=tracking.backend == "none")
    from introspect_ray.storage.tracking_mlflow import open_run

    where = uri or tracking_uri(tracking, output_dir)
    try:
        mlflow = open_run(where, tracking.experiment, run_name, parent_run_id=parent_run_id, run_id=run_id)
    except UserError as error:
        if parent_run_id is None:
            raise
        _log.warning("%s is tracked in its folder alone: %s", run_name, error)
        return JsonlTracker(output_dir)
    return CompositeTracker(JsonlTracker(output_dir, artifacts=False), mlflow)


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


class JsonlTracker(Tracker):
    """metrics.jsonl (one row per call, with "step"), params.json and artifacts/ in the output folder.

    Locally every row is on disk at once. S3 cannot append: there the object is rewritten at a flush, at close, and
    whenever it has grown by a tenth (at least 50 rows), so that about ten times its final size is sent in all.
    """

    NAME = "metrics.jsonl"

    def __init__(self, output_dir: str, *, metrics_only: bool = False, artifacts: bool = True) -> None:
        self._store = open_store(output_dir)
        self._params, self._artifacts = not metrics_only, artifacts and not metrics_only
        path = self._store.local_path(self.NAME)
        self._rows: list[str] = []  # content of the object on S3; a local file is appended to
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif self._store.exists(self.NAME):
            self._rows = self._store.read_bytes(self.NAME).decode().splitlines(keepends=True)
        self._sent = len(self._rows)
        self._file = path.open("a", encoding="utf-8", buffering=1) if path is not None else None  # buffered by line

    def log_params(self, params: Mapping[str, Any]) -> None:
        if self._params:
            self._store.write_json("params.json", flatten(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        row = json.dumps({"step": step, **numbers(metrics, step)}, ensure_ascii=False) + "\n"
        if self._file is not None:
            self._file.write(row)
            return
        self._rows.append(row)
        if len(self._rows) - self._sent >= max(50, self._sent // 10):
            self._send()

    def _send(self) -> None:
        self._store.write_bytes(self.NAME, "".join(self._rows).encode())
        self._sent = len(self._rows)

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        if not self._artifacts:
            return
        path, prefix = Path(path), "/".join(filter(None, ["artifacts", folder.strip("/")]))
        local = self._store.local_path(prefix)
        if path.is_dir():
            self._store.upload_dir(path, f"{prefix}/{path.name}")
        elif local is not None:  # copied without reading the file into memory
            local.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, local / path.name)
        else:
            self._store.write_bytes(f"{prefix}/{path.name}", path.read_bytes())

    def flush(self) -> None:
        if self._file is None and len(self._rows) > self._sent:
            self._send()

    def close(self, status: Status = "FINISHED") -> None:
        self.flush()
        if self._file is not None:
            self._file.close()


class CompositeTracker(Tracker):
    """Several trackers as one; all are closed even if one fails."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers
        self.uri = next((t.uri for t in trackers if t.uri), None)
        self.run_id = next((t.run_id for t in trackers if t.run_id), None)

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            call(tracker)

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

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        self._each(lambda tracker: tracker.log_artifact(path, folder))

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def close(self, status: Status = "FINISHED") -> None:
        errors = []
        for tracker in self._trackers:
            try:
                tracker.close(status)
            except Exception as error:  # raised when the other trackers are closed
                errors.append(error)
        if errors:
            raise errors[0]
