"""A tracker that writes to MLflow: runs through MlflowClient, metrics in batches."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from introspect_ray.config import flatten
from introspect_ray.errors import UserError
from introspect_ray.storage.tracker import Status, Tracker, numbers

FLUSH_S = 2.0
FLUSH_CALLS = 50  # log_metrics calls
MAX_FAILED_FLUSHES = 5
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100  # MLflow's limits on one log_batch
_CONNECT_S = 5.0
_log = logging.getLogger(__name__)


def prepare_mlflow(uri: str, experiment: str) -> str:
    """Create store and experiment if they do not exist; returns the experiment's id. To be called in one process first.

    The artifacts of an SQLite store go beside it (artifacts/); a server decides itself.
    Raises UserError with the remedy if the store cannot be used.
    """
    check_server(uri)
    _make_folder(uri)
    _silence()
    from mlflow.exceptions import MlflowException

    try:
        client = _client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            made: str = client.create_experiment(experiment, artifact_location=_beside(uri))
            return made
    except MlflowException as error:
        raise UserError(f"tracking.uri={uri}: MLflow cannot use it: {_line(error)}") from None
    if found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={experiment!r} is deleted in {uri}: restore it there or choose another name"
        )
    return str(found.experiment_id)


def open_run(
    uri: str, experiment: str, run_name: str, *, parent_run_id: str | None = None, run_id: str | None = None
) -> MLflowTracker:
    """Start a run (a child of `parent_run_id`), or continue `run_id`. Raises UserError if there is no such run."""
    experiment_id = prepare_mlflow(uri, experiment)
    client = _client(uri)
    if run_id is None:
        tags = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
        return MLflowTracker(uri, client.create_run(experiment_id, tags=tags, run_name=run_name).info.run_id)
    from mlflow.exceptions import MlflowException

    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        raise UserError(
            f"MLflow run {run_id} cannot be continued in {uri}: {_line(error)}; start without --resume"
        ) from None
    return MLflowTracker(uri, run_id)


class MLflowTracker(Tracker):
    """One MLflow run. Metrics are buffered for FLUSH_CALLS calls or FLUSH_S seconds, checked at each call.

    A flush that fails leaves its metrics to the next one; MAX_FAILED_FLUSHES failures in a row raise RuntimeError.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._client = _client(uri)
        self._metrics: list[Any] = []
        self._calls = self._failed = 0
        self._flushed = time.monotonic()
        self._closed = False
        self._lock = threading.Lock()  # a thread logs the steps while the driver logs artifacts

    def log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        flat = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(params).items()}
        entities = [Param(key, value) for key, value in flat.items()]
        try:
            for start in range(0, len(entities), _BATCH_PARAMS):
                self._client.log_batch(self.run_id, params=entities[start : start + _BATCH_PARAMS])
        except MlflowException as error:
            raise UserError(
                f"MLflow run {self.run_id} refuses the parameters: {_line(error)}; resume with the same config"
            ) from None

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(key, float(value), now, step) for key, value in numbers(metrics, step).items()]
        with self._lock:
            self._metrics += entities
            self._calls += 1
            if self._calls >= FLUSH_CALLS or time.monotonic() - self._flushed >= FLUSH_S:
                self._flush(last=False)

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """A folder keeps its name below `folder`."""
        path = Path(path)
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), "/".join(filter(None, [folder.strip("/"), path.name])))
        else:
            self._client.log_artifact(self.run_id, str(path), folder.strip("/") or None)

    def flush(self, *, final: bool = True) -> None:
        with self._lock:
            self._flush(last=final)

    def close(self, status: Status = "FINISHED") -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._flush(last=True)
            finally:
                self._client.set_terminated(self.run_id, status)

    def _flush(self, *, last: bool) -> None:
        from mlflow.exceptions import MlflowException

        self._calls, self._flushed = 0, time.monotonic()
        try:
            while self._metrics:
                self._client.log_batch(self.run_id, metrics=self._metrics[:_BATCH_METRICS])
                del self._metrics[:_BATCH_METRICS]
            self._failed = 0
        except MlflowException as error:
            self._failed += 1
            left = len(self._metrics)
            told = f"MLflow at {self.uri} refused {left} metrics, time {self._failed} in a row: {_line(error)}"
            if last or self._failed >= MAX_FAILED_FLUSHES:
                raise RuntimeError(f"{told}; metrics.jsonl in the output folder has them all") from error
            _log.warning("%s; they are kept and sent again", told)


def _client(uri: str) -> Any:
    _silence()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _silence() -> None:
    """To be called before mlflow is imported: no usage reports, and no log lines about the creation of a store."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)


def check_server(uri: str) -> None:
    """Raises UserError within seconds if no server answers; MLflow itself would retry for minutes. Changes nothing."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S).close()
        except (OSError, ValueError) as error:
            raise UserError(
                f"tracking.uri={uri}: no MLflow server answers ({error}): start it or correct the address"
            ) from None


def _make_folder(uri: str) -> None:
    if uri.startswith("sqlite:"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"tracking.uri={uri}: cannot make {folder} ({error.strerror}): choose another path"
            ) from None


def _beside(uri: str) -> str | None:
    """Where the artifacts of an SQLite store go; None: the server decides."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "artifacts").as_uri()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
