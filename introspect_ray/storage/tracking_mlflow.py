"""A run in MLflow: it takes the calls of a tracker one after another, through MlflowClient. Every call raises.

What keeps a run from being held up by MLflow is tracking_queue.py, in whose thread all of this happens.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.storage import Store
from introspect_ray.storage.tracking_calls import Call, Target
from introspect_ray.storage.tracking_store import (
    PARENT,
    line_of,
    open_client,
    origin_tags,
    prepare_mlflow,
    tag_experiment,
)

_BATCH_METRICS, _BATCH_PARAMS = 1000, 100  # MLflow's limits on one log_batch
_REFUSED_IN_MODELS = re.compile(r"[/:.%\"']")  # in their names
_FINAL = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")  # error codes


def open_run(target: Target, store: Store, *, running: bool = True) -> MLflowRun:
    """Start the run of `target`, or continue it. running: whether it runs again from now on.

    Raises UserError with the remedy, Unreachable where no server answers.
    """
    experiment_id = prepare_mlflow(target.uri, target.experiment)
    client = open_client(target.uri)
    from mlflow.exceptions import MlflowException

    known = target.run_id
    try:
        if known is None:
            tags = target.tags if target.parent is None and target.tags else origin_tags(client, target.parent)
            made = client.create_run(experiment_id, tags=tags, run_name=target.name)
            target = replace(target, run_id=made.info.run_id)
        elif running:
            client.update_run(known, status="RUNNING")
        found = client.get_run(target.run_id)
        if target.parent and PARENT not in found.data.tags:
            client.set_tag(target.run_id, PARENT, target.parent)
    except MlflowException as error:
        remedy = f"; delete {store.join('tracking.json')} to start another run there" if known else ""
        what = f"run {known} cannot be continued" if known else f"run {target.name} cannot be started"
        raise UserError(f"MLflow {what} in {target.uri}: {line_of(error)}{remedy}") from None
    return MLflowRun(client, target, experiment_id, store)


def is_final(error: BaseException) -> bool:
    """Whether a call would be refused again whatever happens: MLflow finds it wrong, or its file is not there."""
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", None) in _FINAL


class MLflowRun:
    """One MLflow run. A call that was taken before changes nothing: a sender that was cut off sends it again."""

    def __init__(self, client: Any, target: Target, experiment_id: str, store: Store) -> None:
        """store: the run's output folder, from which files are taken."""
        self.target, self.experiment_id = target, experiment_id
        self._client, self._store = client, store
        self._run_id: str = target.run_id or ""

    def send(self, calls: Sequence[Call]) -> None:
        """Calls of kind "metrics" together, or one of another kind. Raises what MLflow raises."""
        if calls[0].kind == "metrics":
            metrics = [
                _metric(key, value, call.ms, call.args["step"])
                for call in calls
                for key, value in call.args["metrics"].items()
            ]
            self._log_metrics(metrics)
            return
        for call in calls:
            getattr(self, f"_send_{call.kind}")(call.ms, **call.args)

    def _log_metrics(self, metrics: Sequence[Any]) -> None:
        for start in range(0, len(metrics), _BATCH_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH_METRICS])

    def _send_params(self, ms: int, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(entities), _BATCH_PARAMS):
            self._client.log_batch(self._run_id, params=entities[start : start + _BATCH_PARAMS])

    def _send_announce(self, ms: int, names: Sequence[str]) -> None:
        """NaN until they are there: SQL stores give a run's metrics in the order in which they came, and the compare
        page opens with the first one."""
        self._log_metrics([_metric(name, math.nan, ms, 0) for name in names])

    def _send_result(
        self, ms: int, metrics: Mapping[str, float], step: int, curves: Sequence[str], policy: Mapping[str, Any] | None
    ) -> None:
        """MLflow draws a metric at step 0 as a bar per run, and a later one as a curve of one point. So results are
        at step 0, unless there is a curve already. `policy` becomes a LoggedModel with the metrics."""
        of_model = self._log_policy(policy, step) if policy else {}
        at = {key: step if key in curves else 0 for key in metrics}
        self._log_metrics([_metric(key, value, ms, at[key], **of_model) for key, value in metrics.items()])

    def _log_policy(self, policy: Mapping[str, Any], step: int) -> dict[str, str]:
        """Returns the fields of metrics that are of this model. Its weights stay where they are, at tag `uri`."""
        from mlflow.entities import LoggedModelOutput

        name = _REFUSED_IN_MODELS.sub("_", policy["name"])
        there = self._client.search_logged_models(
            [self.experiment_id], filter_string=f"source_run_id = '{self._run_id}' AND name = '{name}'"
        )
        model = next(iter(there), None) or self._client.create_logged_model(
            self.experiment_id,
            name=name,
            source_run_id=self._run_id,
            tags={"uri": policy["uri"]},
            params=policy["params"],
            model_type="policy",
        )
        self._client.finalize_logged_model(model.model_id, "READY")
        outputs = self._client.get_run(self._run_id).outputs
        if model.model_id not in {one.model_id for one in (outputs.model_outputs if outputs else [])}:
            self._client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, step)])
        data = policy["scored_on"]
        about = {"dataset_name": data["name"], "dataset_digest": data["digest"]} if data else {}
        return {"model_id": model.model_id, **about}

    def _send_tags(self, ms: int, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _send_datasets(self, ms: int, datasets: Sequence[Mapping[str, Any]]) -> None:
        self._client.log_inputs(self._run_id, list(_inputs(datasets)))

    def _send_view(self, ms: int, keys: Sequence[str]) -> None:
        tag_experiment(self._client, self._client.get_experiment(self.experiment_id), keys)

    def _send_file(self, ms: int, name: str, folder: str) -> None:
        """Raises FileNotFoundError where the run's folder does not have it any more."""
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch, Path(name).name)
            with local.open("wb") as content:
                self._store.read_into(name, content)
            self._client.log_artifact(self._run_id, str(local), folder.strip("/") or None)

    def _send_end(self, ms: int, status: str) -> None:
        self._client.set_terminated(self._run_id, status, end_time=ms)


def _metric(key: str, value: float, ms: int, step: int, **of_model: str) -> Any:
    from mlflow.entities import Metric

    return Metric(key, float(value), ms, step, **of_model)


def _inputs(datasets: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    for data in datasets:
        entity = Dataset(
            name=data["name"],
            digest=data["digest"],
            source_type="introspect-ray",
            source=json.dumps(data["source"]),
            profile=json.dumps({"cases": data["cases"]}),
        )
        yield DatasetInput(entity, tags=[InputTag("mlflow.data.context", data["context"])])
