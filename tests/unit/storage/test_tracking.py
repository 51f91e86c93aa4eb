"""Every tracker writes the same numbers; MLflow runs end in the state the run ended in."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from introspect_ray.config import TrackingConfig
from introspect_ray.errors import UserError
from introspect_ray.storage import open_store, tracking_mlflow
from introspect_ray.storage.tracker import numbers
from introspect_ray.storage.tracking import JsonlTracker, make_tracker, tracking_uri
from introspect_ray.storage.tracking_store import prepare_mlflow


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
    with make_tracker(TrackingConfig(backend="none"), str(tmp_path / "run"), "run") as tracker:
        tracker.log_params({"seed": 0})
        tracker.log_metrics({"loss": 1}, 0)
        tracker.log_artifact(tmp_path / "file.txt")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_jsonl_artifacts(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/a.png").write_bytes(b"png")
    with JsonlTracker(str(tmp_path / "run")) as tracker:
        tracker.log_artifact(tmp_path / "figures/a.png", "plots")
        tracker.log_artifact(tmp_path / "figures")
    assert open_store(tmp_path / "run").list("artifacts") == ["artifacts/figures/a.png", "artifacts/plots/a.png"]


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
    (tmp_path / "a.txt").write_text("x")
    tracker.log_artifact(tmp_path / "a.txt", "notes")
    tracker.close()
    assert [row["loss"] for row in rows(s3_env)] == list(range(120))
    assert open_store(s3_env).list() == ["artifacts/notes/a.txt", "metrics.jsonl"]
    with JsonlTracker(s3_env) as again:
        again.log_metrics({"loss": -1}, 120)
    assert [row["loss"] for row in rows(s3_env)] == [*range(120), -1]


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
    (tmp_path / "figure.txt").write_text("drawn")
    with make_tracker(cfg, str(tmp_path / "sweep"), "sweep") as parent:
        parent.log_params({"task": {"name": "organism"}, "steps": 2, "path": None})
        with make_tracker(
            TrackingConfig(), str(tmp_path / "trial"), "trial", uri=parent.uri, parent_run_id=parent.run_id
        ) as child:
            for step, row in enumerate(metrics):
                child.log_metrics(row, step)
            child.log_artifact(tmp_path / "figure.txt", "figures")
    found, run = client(store), client(store).get_run(child.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "trial"
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert [(m.step, m.value) for m in found.get_metric_history(child.run_id, "loss")] == [(0, 0.5), (1, 0.25)]
    assert [(m.step, m.value) for m in found.get_metric_history(child.run_id, "gap")] == [(1, 2.0)]
    assert found.get_run(parent.run_id).data.params == {"task.name": "organism", "steps": "2", "path": "null"}
    assert rows(tmp_path / "trial") == [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25, "gap": 2.0}]
    beside = Path(store.removeprefix("sqlite:///")).parent / "artifacts" / child.run_id / "artifacts/figures/figure.txt"
    assert beside.read_text() == "drawn"


def test_a_failed_run_is_failed_and_can_be_continued(store: str, tmp_path: Path) -> None:
    cfg = TrackingConfig(uri=store)
    with pytest.raises(KeyError), make_tracker(cfg, str(tmp_path), "run") as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
        raise KeyError("boom")
    found = client(store)
    assert found.get_run(tracker.run_id).info.status == "FAILED"
    assert [m.value for m in found.get_metric_history(tracker.run_id, "loss")] == [1.0]  # the buffer was written
    with make_tracker(cfg, str(tmp_path), "run", run_id=tracker.run_id) as again:
        assert found.get_run(tracker.run_id).info.status == "RUNNING"
        again.log_metrics({"loss": 0.5}, 1)
    assert again.run_id == tracker.run_id
    assert found.get_run(tracker.run_id).info.status == "FINISHED"
    assert [m.value for m in found.get_metric_history(tracker.run_id, "loss")] == [1.0, 0.5]


def test_changed_parameters_of_a_continued_run_are_refused(store: str, tmp_path: Path) -> None:
    with make_tracker(TrackingConfig(uri=store), str(tmp_path), "run") as tracker:
        tracker.log_params({"seed": 0})
        tracker.log_params({"seed": 0})
        with pytest.raises(UserError, match=r"refuses the parameters: .*seed.*; resume with the same config"):
            tracker.log_params({"seed": 1})


class _Flaky:
    """A client whose first `failures` batches are refused."""

    def __init__(self, failures: int) -> None:
        self.failures, self.batches, self.ended = failures, [], []

    def log_batch(self, run_id: str, metrics: list[Any] = (), tags: list[Any] = ()) -> None:
        from mlflow.exceptions import MlflowException

        if self.failures:
            self.failures -= 1
            raise MlflowException("database is locked")
        self.batches.append([m.step for m in metrics])

    def set_terminated(self, run_id: str, status: str) -> None:
        self.ended.append(status)


def flaky(store: str, monkeypatch: pytest.MonkeyPatch, failures: int) -> tuple[Any, _Flaky]:
    fake = _Flaky(failures)
    monkeypatch.setattr(tracking_mlflow, "open_client", lambda uri: fake)
    monkeypatch.setattr(tracking_mlflow, "FLUSH_S", math.inf)  # by calls only: nothing here depends on time
    return tracking_mlflow.MLflowTracker(store, "run", "1"), fake


def test_metrics_are_written_in_batches(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, fake = flaky(store, monkeypatch, failures=0)
    for step in range(120):
        tracker.log_metrics({"loss": 1.0}, step)
    assert [len(batch) for batch in fake.batches] == [50, 50]
    tracker.close()
    tracker.close("FAILED")  # a second close changes nothing
    assert [len(batch) for batch in fake.batches] == [50, 50, 20] and fake.ended == ["FINISHED"]


def test_a_refused_batch_is_sent_again_in_order(
    store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, fake = flaky(store, monkeypatch, failures=1)
    with caplog.at_level(logging.WARNING):
        for step in range(100):
            tracker.log_metrics({"loss": 1.0}, step)
    assert fake.batches == [list(range(100))]
    assert "refused 50 metrics, which wait for the next call (refusal 1): database is locked" in caplog.text


def test_refusals_end_no_run_and_are_counted(
    store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 1000 metrics the last 100 wait, the others are dropped; the last flush is refused too."""
    monkeypatch.setattr(tracking_mlflow, "MOST_KEPT", 100)
    tracker, fake = flaky(store, monkeypatch, failures=1000)
    with caplog.at_level(logging.WARNING):
        for step in range(1000):
            tracker.log_metrics({"loss": 1.0}, step)
        tracker.log_tags({"task": "organism"})
        tracker.close()
    assert "lacks 1000 metrics of run run; metrics.jsonl in the output folder has them all" in caplog.text
    assert "refused tags" in caplog.text
    assert fake.batches == [] and fake.ended == ["FINISHED"]  # not left RUNNING


def test_a_waiting_metric_is_not_lost_when_the_server_is_back(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, fake = flaky(store, monkeypatch, failures=2)
    tracker.log_metrics({"loss": 1.0}, 0)
    for _ in range(3):
        tracker.flush()
    assert fake.batches == [[0]]


def test_a_trial_goes_on_in_its_folder_where_its_sweep_cannot_be_reached(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("kept")
    with make_tracker(
        TrackingConfig(), str(tmp_path), "trial", uri="http://127.0.0.1:9", parent_run_id="sweep"
    ) as trial:
        trial.log_metrics({"loss": 1.0}, 0)
        trial.log_artifact(tmp_path / "note.txt")
    assert rows(tmp_path) == [{"step": 0, "loss": 1.0}] and (tmp_path / "artifacts/note.txt").is_file()


@pytest.mark.parametrize(
    "uri, message",
    [
        ("http://127.0.0.1:9", r"no MLflow server answers .*: start it or correct the address"),
        ("sqlite:////proc/none/mlflow.db", r"cannot make /proc/none"),
        ("ftp://host", r"tracking.uri=ftp://host: MLflow cannot use it"),
    ],
)
def test_unusable_stores_are_named(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_tracker(TrackingConfig(uri=uri), str(tmp_path), "run")
    assert "\n" not in str(caught.value)


def test_unknown_run_and_deleted_experiment(store: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run nope cannot be continued .*start without --resume"):
        make_tracker(TrackingConfig(uri=store), str(tmp_path), "run", run_id="nope")
    gone = prepare_mlflow(store, "gone")
    client(store).delete_experiment(gone)
    with pytest.raises(
        UserError, match=r"tracking.experiment='gone' is deleted .*: restore it there or choose another"
    ):
        prepare_mlflow(store, "gone")
