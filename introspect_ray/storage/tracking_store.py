"""The store of MLflow: reaching it, its experiment, and the tags that every run of a job shares."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.storage.reach import Unreachable, check_answers
from introspect_ray.storage.tracking_view import experiment_tags

_log = logging.getLogger(__name__)
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",  # no git: no commit, and no warning
    # A queue asks again, with longer pauses (tracking_queue.py): MLflow itself would try for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
PARENT = "mlflow.parentRunId"
_COMMIT = "mlflow.source.git.commit"
_OF_THE_JOB = ("mlflow.user", "mlflow.source.", "ray_job_id")


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
        client = open_client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            client.create_experiment(experiment, artifact_location=_beside(uri))
            found = client.get_experiment_by_name(experiment)
        if found.lifecycle_stage == "active":
            tag_experiment(client, found, [])
    except MlflowException as error:
        raise UserError(f"tracking.uri={uri}: MLflow cannot use it: {line_of(error)}") from None
    except ImportError as error:  # SQLAlchemy has no driver for this database
        raise UserError(
            f"tracking.uri={uri}: MLflow cannot use it ({line_of(error)}): install that package, or name an MLflow "
            "server (http://...)"
        ) from None
    if found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={experiment!r} is deleted in {uri}: restore it there or choose another name"
        )
    return str(found.experiment_id)


def tag_experiment(client: Any, experiment: Any, keys: Sequence[str]) -> None:
    """Set what is missing of `experiment_tags` for the swept `keys`."""
    now_ms = int(time.time() * 1000)
    for key, value in experiment_tags(experiment.experiment_id, experiment.tags, keys, now_ms).items():
        client.set_experiment_tag(experiment.experiment_id, key, value)


def origin_tags(client: Any, parent_run_id: str | None) -> dict[str, str]:
    """Tags that say who started a run, with which code: the parent's for a child, whose process is one of Ray's.

    client: needed for a child alone.
    """
    _silence()
    if parent_run_id:
        tags: dict[str, str] = client.get_run(parent_run_id).data.tags
        inherited = {key: value for key, value in tags.items() if key.startswith(_OF_THE_JOB)}
        return {**inherited, PARENT: parent_run_id}
    from mlflow.tracking.context.registry import resolve_tags
    from mlflow.utils.git_utils import get_git_commit

    found: dict[str, str] = resolve_tags()
    commit = found.get(_COMMIT) or get_git_commit(str(Path(__file__).parent))  # of the script, else of this package
    return {**found, **({_COMMIT: commit} if commit else {})}


def open_client(uri: str) -> Any:
    _silence()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def import_ahead(uri: str) -> None:
    """Import what MLflow needs for the store `uri` in a thread, while the caller waits for something else.

    What fails here is raised when a run is opened.
    """
    _silence()

    def imports() -> None:
        with suppress(Exception):
            import mlflow

            if uri.startswith("sqlite"):
                import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    threading.Thread(target=imports, name="import-mlflow", daemon=True).start()


def _silence() -> None:
    """To be called before mlflow is imported: no usage reports, no long retries, and no log lines about the creation of
    a store."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)


def check_server(uri: str, *, required: bool = True) -> None:
    """Raises UserError within seconds if no server answers; MLflow itself would retry for minutes. Changes nothing.

    required: False for a run that goes on: it is told, and the run's rows wait.
    """
    try:
        check_answers(uri)
    except Unreachable as error:
        if required:
            raise
        _log.warning("%s; the run goes on without it, and its rows wait on disk", error)


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


def line_of(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
