"""Every tracker writes the same numbers; MLflow runs end in the state the run ended in."""

from __future__ import annotations

import json
import logging
import math
import resource
from pathlib import Path
from typing import Any

import pytest

from introspect_ray.config import TrackingConfig
from introspect_ray.errors import Halted, UserError
from introspect_ray.runs.results import step_rows
from introspect_ray.storage import open_store
from introspect_ray.storage.s3 import S3Store
from introspect_ray.storage.tracker import numbers
from introspect_ray.storage.tracking import JsonlTracker, make_tracker, tracking_uri
from introspect_ray.storage.tracking_calls import Target, write_target
from introspect_ray.storage.tracking_store import check_server, prepare_mlflow


def rows(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in open_store(folder).read_bytes("metrics.jsonl").decode().splitlines()]


def test_none_is_skipped_and_nan_is_refused(tmp_path: Path) -> None:
    assert numbers({"loss": 0.5, "gap": None, "orig": {"em": 1}}, 3) == {"loss": 0.5, "orig.em": 1}
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"metric 'orig.em' at step 3 is (nan|inf)"):
            numbers({"orig": {"em": value}}, 3)
    with pytest.raises(TypeError, match=r"metric 'rule' at step 3 is str 'fixed', not a number"):
        numbers({"rule": "fixed"}, 3)
    with pytest.raises(ValueError, match="at step 0 is nan"):
        JsonlTracker(str(tmp_path)).log_metrics({"loss": math.nan}, 0)


def test_jsonl_is_on_disk_at_once(tmp_path: Path) -> None:
    tracker = make_tracker(TrackingConfig(backend="jsonl"), str(tmp_path / "run"), "run")
    tracker.log_params({"seed": 0, "task": {"name": "organism"}})
    tracker.log_metrics({"loss": 0.5, "gap": None}, 0)
    tracker.log_metrics({"loss": 0.25}, 1)
    assert rows(tmp_path / "run") == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25}]
    assert json.loads((tmp_path / "run/params.json").read_text()) == {"seed": 0, "task.name": "organism"}
    tracker.close()


def test_backend_none_writes_metrics_only(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    with make_tracker(TrackingConfig(backend="none"), str(tmp_path), "run") as tracker:
        tracker.log_params({"seed": 0})
        tracker.log_metrics({"loss": 1}, 0)
        tracker.log_file("file.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "metrics.jsonl"]


def test_jsonl_artifacts(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.parquet").write_bytes(b"labels")
    with JsonlTracker(str(tmp_path)) as tracker:
        tracker.log_file("labels/a.parquet", "plots")
        tracker.log_file("labels/a.parquet")
    assert open_store(tmp_path).list("artifacts") == ["artifacts/a.parquet", "artifacts/plots/a.parquet"]


def test_a_part_of_a_row_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A killed writer leaves it at the end. Version 0.1 wrote on behind it, on a full disk, so it is inside, too."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 0.5}\n{"step": 1, "lo{"step": 2, "loss": 0.25}\n{"step": 3, "loss": 1}\n{"st')
    with caplog.at_level(logging.WARNING), JsonlTracker(str(tmp_path)) as tracker:
        tracker.log_metrics({"loss": 2.0}, 4)
    assert "ended with a part of a row (4 bytes)" in caplog.text
    assert [row["step"] for row in step_rows(open_store(tmp_path))] == [0, 3, 4]
    path.write_text('{"step": 0, "loss": 0.5}')  # whole, but for the end of its line
    with JsonlTracker(str(tmp_path)) as tracker:
        tracker.log_metrics({"loss": 2.0}, 1)
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]


def test_rows_wait_while_the_disk_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the size of files: like a full disk, it takes the first bytes of a row."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    tracker = JsonlTracker(str(tmp_path))
    tracker.log_metrics({"loss": 0.5}, 0)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, unlimited[1]))
        for step in (1, 2):
            tracker.log_metrics({"loss": 0.5}, step)
        tracker.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (tmp_path / "metrics.jsonl").stat().st_size == size
    assert caplog.text.count("cannot be written") == 1
    tracker.log_metrics({"loss": 0.5}, 3)
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3]
    tracker.close()


def test_a_continued_run_keeps_its_rows(tmp_path: Path) -> None:
    with JsonlTracker(str(tmp_path)) as tracker:
        for step in range(2):
            tracker.log_metrics({"loss": step}, step)
    with JsonlTracker(str(tmp_path)) as tracker:
        tracker.log_metrics({"loss": 20}, 2)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(0, 0), (1, 1), (2, 20)]


def test_jsonl_on_s3_is_rewritten_as_it_grows(s3_env: str, tmp_path: Path) -> None:
    tracker = JsonlTracker(s3_env)
    for step in range(120):  # sent at 50 and at 100 rows
        tracker.log_metrics({"loss": step}, step)
    assert len(rows(s3_env)) == 100
    open_store(s3_env).write_bytes("a.txt", b"x")
    tracker.log_file("a.txt", "notes")
    tracker.close()
    assert [row["loss"] for row in rows(s3_env)] == list(range(120))
    assert open_store(s3_env).list() == ["a.txt", "artifacts/notes/a.txt", "metrics.jsonl"]
    with JsonlTracker(s3_env) as again:
        again.log_metrics({"loss": -1}, 120)
    assert [row["loss"] for row in rows(s3_env)] == [*range(120), -1]


def test_rows_wait_while_s3_is_away(
    s3_env: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is away takes its time to say so: it is not asked again for every row."""
    asked = []

    def away(store: S3Store, name: str, data: bytes) -> None:
        asked.append(name)
        raise UserError("cannot reach S3")

    tracker = JsonlTracker(s3_env)
    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "write_bytes", away)
        for step in range(199):
            tracker.log_metrics({"loss": step}, step)
    assert len(asked) == 2 and caplog.text.count("cannot be written") == 1  # at 50 and 100 rows
    tracker.log_metrics({"loss": 199}, 199)
    assert [row["loss"] for row in rows(s3_env)] == list(range(200))


def test_tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(TrackingConfig(), "runs/x") == f"sqlite:///{tmp_path}/runs/x/mlflow.db"
    assert tracking_uri(TrackingConfig(uri="sqlite:///all.db"), "runs/x") == f"sqlite:///{tmp_path}/all.db"
    assert tracking_uri(TrackingConfig(uri="http://host:5000"), "s3://b/x") == "http://host:5000"
    with pytest.raises(UserError, match=r"cannot lie in s3://b/x: set tracking.uri .* or tracking.backend=jsonl"):
        tracking_uri(TrackingConfig(), "s3://b/x")


# --- MLflow, on a real SQLite store -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for the module: making one takes about two seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    prepare_mlflow(uri, "introspect-ray")
    return uri


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def test_an_mlflow_run_and_its_child(store: str, tmp_path: Path) -> None:
    cfg, metrics = TrackingConfig(uri=store), [{"loss": 0.5, "gap": None}, {"loss": 0.25, "gap": 2.0}]
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial/figure.txt").write_text("drawn")
    with make_tracker(cfg, str(tmp_path / "sweep"), "sweep") as parent:
        parent.log_params({"task": {"name": "organism"}, "steps": 2, "path": None})
        with make_tracker(
            TrackingConfig(), str(tmp_path / "trial"), "trial", uri=parent.uri, parent_run_id=parent.run_id
        ) as child:
            for step, row in enumerate(metrics):
                child.log_metrics(row, step)
            child.log_file("figure.txt", "figures")
    found, run = client(store), client(store).get_run(child.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "trial"
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert [(m.step, m.value) for m in found.get_metric_history(child.run_id, "loss")] == [(0, 0.5), (1, 0.25)]
    assert [(m.step, m.value) for m in found.get_metric_history(child.run_id, "gap")] == [(1, 2.0)]
    assert found.get_run(parent.run_id).data.params == {"task.name": "organism", "steps": "2", "path": "null"}
    assert rows(tmp_path / "trial") == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25, "gap": 2.0}]
    beside = Path(store.removeprefix("sqlite:///")).parent / "artifacts" / child.run_id / "artifacts/figures/figure.txt"
    assert beside.read_text() == "drawn"


def test_a_run_that_was_told_to_end_is_killed(store: str, tmp_path: Path) -> None:
    with pytest.raises(Halted), make_tracker(TrackingConfig(uri=store), str(tmp_path), "run") as tracker:
        raise Halted("SIGTERM: the checkpoint of step 3 is stored")
    assert client(store).get_run(tracker.run_id).info.status == "KILLED"


def test_a_failed_run_is_failed_and_can_be_continued(store: str, tmp_path: Path) -> None:
    cfg = TrackingConfig(uri=store)
    with pytest.raises(KeyError), make_tracker(cfg, str(tmp_path), "run") as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
        raise KeyError("boom")
    found = client(store)
    assert found.get_run(tracker.run_id).info.status == "FAILED"
    assert [m.value for m in found.get_metric_history(tracker.run_id, "loss")] == [1.0]  # the buffer was written
    with make_tracker(cfg, str(tmp_path), "run") as again:
        assert found.get_run(tracker.run_id).info.status == "RUNNING"
        again.log_metrics({"loss": 0.5}, 1)
    assert again.run_id == tracker.run_id
    assert found.get_run(tracker.run_id).info.status == "FINISHED"
    assert [m.value for m in found.get_metric_history(tracker.run_id, "loss")] == [1.0, 0.5]


@pytest.mark.parametrize(
    "uri, message",
    [
        ("sqlite:////proc/none/mlflow.db", r"cannot make /proc/none"),
        ("ftp://host", r"tracking.uri=ftp://host: MLflow cannot use it"),
    ],
)
def test_unusable_stores_are_named(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_tracker(TrackingConfig(uri=uri), str(tmp_path), "run")
    assert "\n" not in str(caught.value)


def test_a_server_that_is_away_refuses_new_runs_alone(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="no MLflow server answers"):
        check_server("http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        check_server("http://127.0.0.1:9", required=False)
    assert "the run goes on without it, and its rows wait on disk" in caplog.text


def test_a_deleted_experiment_is_refused(store: str) -> None:
    gone = prepare_mlflow(store, "gone")
    client(store).delete_experiment(gone)
    with pytest.raises(
        UserError, match=r"tracking.experiment='gone' is deleted .*: restore it there or choose another"
    ):
        prepare_mlflow(store, "gone")


def test_a_run_that_mlflow_lost_goes_on_without_it(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_target(open_store(tmp_path), Target(store, "introspect-ray", "run", run_id="nope"))
    with caplog.at_level(logging.WARNING), make_tracker(TrackingConfig(uri=store, patience_s=0), str(tmp_path), "run"):
        pass
    assert "run nope cannot be continued" in caplog.text and "tracking.json to start another run" in caplog.text
