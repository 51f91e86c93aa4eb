"""A tracker that writes to MLflow: runs through MlflowClient, metrics in batches."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from introspect_ray.config import flatten
from introspect_ray.errors import UserError
from introspect_ray.storage.tracker import Dataset, Status, Tracker, TrainedPolicy, numbers
from introspect_ray.storage.tracking_store import line_of, open_client, origin_tags, prepare_mlflow, tag_experiment
from introspect_ray.storage.tracking_view import NOTE, view_id, view_path

FLUSH_S = 2.0
FLUSH_CALLS = 50  # log_metrics calls
MOST_KEPT = 200_000  # metrics that wait for a server; a run of 1,500 steps has about 25,000
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100  # MLflow's limits on one log_batch
_REFUSED_IN_MODELS = re.compile(r"[/:.%\"']")  # in their names
_log = logging.getLogger(__name__)


def open_run(
    uri: str, experiment: str, run_name: str, *, parent_run_id: str | None = None, run_id: str | None = None
) -> MLflowTracker:
    """Start a run (a child of `parent_run_id`), or continue `run_id`. Raises UserError if it cannot."""
    experiment_id = prepare_mlflow(uri, experiment)
    client = open_client(uri)
    from mlflow.exceptions import MlflowException

    try:
        if run_id is None:
            run = client.create_run(experiment_id, tags=origin_tags(client, parent_run_id), run_name=run_name)
        else:
            run = client.update_run(run_id, status="RUNNING") or client.get_run(run_id)
    except MlflowException as error:
        remedy = "; start without --resume" if run_id else ""
        what = f"run {run_id} cannot be continued" if run_id else f"run {run_name} cannot be started"
        raise UserError(f"MLflow {what} in {uri}: {line_of(error)}{remedy}") from None
    return MLflowTracker(uri, run.info.run_id, experiment_id)


class MLflowTracker(Tracker):
    """One MLflow run. Metrics are buffered for FLUSH_CALLS calls or FLUSH_S seconds, checked at each call.

    Once it is open, MLflow ends no run: what it refuses is a warning. Metrics wait for the next flush meanwhile, the
    last MOST_KEPT of them.
    """

    uri: str
    run_id: str

    def __init__(self, uri: str, run_id: str, experiment_id: str) -> None:
        self.uri, self.run_id, self._experiment_id = uri, run_id, experiment_id
        self._client = open_client(uri)
        self._metrics: list[Any] = []
        self._series: set[str] = set()  # names with a value after some step
        self._calls = self._refused = self._dropped = 0
        self._flushed = time.monotonic()
        self._closed = False
        self._lock = threading.Lock()  # a thread logs the steps while the driver logs artifacts

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Raises UserError if the run has other values already."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        flat = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(params).items()}
        entities = [Param(key, value) for key, value in flat.items()]
        try:
            for start in range(0, len(entities), _BATCH_PARAMS):
                self._client.log_batch(self.run_id, params=entities[start : start + _BATCH_PARAMS])
        except MlflowException as error:
            raise UserError(
                f"MLflow run {self.run_id} refuses the parameters: {line_of(error)}; resume with the same config"
            ) from None

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        found = numbers(metrics, step)
        if step:
            self._series |= found.keys()
        self._add(found, {}, step)

    def log_step(self, row: Mapping[str, Any]) -> None:
        """Under names that come after those of held-out scores: train_batch.loss, train_batch.explanation_self, ..."""
        self.log_metrics({"train_batch": {key: value for key, value in row.items() if key != "step"}}, row["step"])

    def log_result(self, metrics: Mapping[str, Any], step: int, policy: TrainedPolicy | None = None) -> None:
        """MLflow draws a metric at step 0 as a bar per run, and a later one as a curve of one point. So results are
        at step 0, unless there is a curve already. `policy` becomes a LoggedModel with the metrics."""
        found = numbers(metrics, step)
        of_model: dict[str, str] = {}
        if policy is not None:
            with self._tolerated("the trained policy"):
                of_model = self._log_policy(policy, step)
        for at in (0, step) if step else (0,):
            self._add({key: value for key, value in found.items() if (key in self._series) == bool(at)}, of_model, at)

    def _log_policy(self, policy: TrainedPolicy, step: int) -> dict[str, str]:
        """Returns the fields of metrics that are of this model. Its weights stay where they are, at tag `uri`."""
        from mlflow.entities import LoggedModelOutput

        model = self._client.create_logged_model(
            self._experiment_id,
            name=_REFUSED_IN_MODELS.sub("_", policy.name),
            source_run_id=self.run_id,
            tags={"uri": policy.uri},
            params=policy.params,
            model_type="policy",
        )
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        data = policy.scored_on
        about = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
        return {"model_id": model.model_id, **about}

    def announce(self, names: Sequence[str]) -> None:
        """NaN until they are there: SQL stores give a run's metrics in the order in which they came, and the compare
        page opens with the first one."""
        self._add(dict.fromkeys(names, math.nan), {}, 0)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with self._tolerated("tags"):
            self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def describe(self, text: str) -> None:
        self.log_tags({NOTE: text})

    def log_datasets(self, datasets: Sequence[Dataset]) -> None:
        from mlflow.entities import Dataset as Data
        from mlflow.entities import DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Data(
                    name=data.name,
                    digest=data.digest,
                    source_type="introspect-ray",
                    source=json.dumps(data.source),
                    profile=json.dumps({"cases": data.cases}),
                ),
                tags=[InputTag("mlflow.data.context", data.context)],
            )
            for data in datasets
        ]
        with self._tolerated("datasets"):
            self._client.log_inputs(self.run_id, inputs)

    def show_runs_by(self, keys: Sequence[str]) -> None:
        with self._tolerated("the view of the runs"):
            tag_experiment(self._client, self._client.get_experiment(self._experiment_id), keys)
            path = view_path(self._experiment_id, view_id(keys))
            served = self.uri.startswith("http")
            start = "" if served else f"mlflow server --backend-store-uri {shlex.quote(self.uri)}; then "
            self.page = f"{start}{self.uri.rstrip('/') if served else 'http://127.0.0.1:5000'}/{path}"

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """A folder keeps its name below `folder`."""
        path = Path(path)
        with self._tolerated(f"artifact {path.name}"):
            if path.is_dir():
                below = "/".join(filter(None, [folder.strip("/"), path.name]))
                self._client.log_artifacts(self.run_id, str(path), below)
            else:
                self._client.log_artifact(self.run_id, str(path), folder.strip("/") or None)

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def close(self, status: Status = "FINISHED") -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._flush()
            if lost := self._dropped + len(self._metrics):
                _log.warning(
                    "MLflow at %s lacks %d metrics of run %s; metrics.jsonl in the output folder has them all",
                    self.uri,
                    lost,
                    self.run_id,
                )
        with self._tolerated(f"status {status}"):
            self._client.set_terminated(self.run_id, status)

    def _add(self, metrics: Mapping[str, float], of_model: Mapping[str, str], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(key, float(value), now, step, **of_model) for key, value in metrics.items()]
        with self._lock:
            self._metrics += entities
            self._calls += 1
            if self._calls >= FLUSH_CALLS or time.monotonic() - self._flushed >= FLUSH_S:
                self._flush()

    def _flush(self) -> None:
        self._calls, self._flushed = 0, time.monotonic()
        with self._tolerated(f"{len(self._metrics)} metrics, which wait for the next call"):
            while self._metrics:
                self._client.log_batch(self.run_id, metrics=self._metrics[:_BATCH_METRICS])
                del self._metrics[:_BATCH_METRICS]
        if (excess := len(self._metrics) - MOST_KEPT) > 0:
            del self._metrics[:excess]
            self._dropped += excess

    @contextmanager
    def _tolerated(self, what: str) -> Iterator[None]:
        """An error in the body is a warning: a run does not end because it cannot be tracked."""
        try:
            yield
        except Exception as error:
            self._refused += 1
            _log.warning("MLflow at %s refused %s (refusal %d): %s", self.uri, what, self._refused, line_of(error))
