"""A run is never held up by MLflow, and what it was not told it is told later: on real SQLite stores, taken away."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from introspect_ray.cli import Arguments
from introspect_ray.config import TrackingConfig
from introspect_ray.errors import UserError
from introspect_ray.runs import track
from introspect_ray.runs.track import track_job
from introspect_ray.storage import open_store, tracking_sender
from introspect_ray.storage.tracker import Dataset, TrainedPolicy
from introspect_ray.storage.tracking import make_tracker
from introspect_ray.storage.tracking_calls import WAITING, Call, Target, read_target, read_waiting, write_waiting
from introspect_ray.storage.tracking_sender import Sender, first_batch

PATIENCE_S = 0.3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_sender, "PAUSE_S", 0.02)
    monkeypatch.setattr(tracking_sender, "GATHER_S", 0.05)
    monkeypatch.setattr(track, "PATIENCE_S", 5 * PATIENCE_S)


@pytest.fixture
def store(tmp_path: Path) -> str:
    (tmp_path / "mlflow").mkdir()
    return f"sqlite:///{tmp_path}/mlflow/mlflow.db"


@contextmanager
def away(store: str) -> Iterator[None]:
    """The folder of the store is gone meanwhile, and a file is in its place."""
    folder = Path(store.removeprefix("sqlite:///")).parent
    kept = folder.rename(folder.with_name("kept"))
    folder.write_text("not a folder")
    try:
        yield
    finally:
        folder.unlink()
        kept.rename(folder)


def config(store: str) -> TrackingConfig:
    return TrackingConfig(uri=store, patience_s=PATIENCE_S)


def send(folder: Path, dry_run: bool = False) -> bool:
    return track_job(Arguments(None, {}, dry_run, False, False, {"send": str(folder)}))


def client(store: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store)


def logged(store: str, run_id: str) -> dict[str, Any]:
    """All that MLflow has of the calls of `tell_all`."""
    found = client(store)
    run = found.get_run(run_id)
    models = found.search_logged_models([run.info.experiment_id])
    return {
        "params": run.data.params,
        "loss": [(m.step, m.value) for m in found.get_metric_history(run_id, "train_batch.loss")],
        "gap": [m.value for m in found.get_metric_history(run_id, "gap.em")][-1],
        "models": [(model.name, [(m.key, m.value) for m in model.metrics]) for model in models],
        "outputs": len(run.outputs.model_outputs),
        "datasets": [one.dataset.name for one in run.inputs.dataset_inputs],
        "files": [one.path for one in found.list_artifacts(run_id, "evaluation")],
        "status": run.info.status,
    }


def tell_all(tracker: Any, folder: Path) -> None:
    (folder / "cases.parquet").write_bytes(b"cases")
    data = Dataset("d test", "ab", "evaluation", {"task": "t"}, 8)
    tracker.log_params({"seed": 0})
    tracker.announce(["gap.em"])
    for step in range(250):
        tracker.log_step({"step": step, "loss": step / 2, "lag": None})
    tracker.log_datasets([data])
    tracker.log_result({"gap": {"em": 0.25}}, 250, TrainedPolicy("run", "runs/x/policy", {"seed": "0"}, data))
    tracker.log_file("cases.parquet", "evaluation")


def test_what_mlflow_missed_it_is_told_later_and_only_once(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As in a run whose server dies, and whose resumption finds it dead: neither waits for it."""
    out = tmp_path / "run"
    make_tracker(config(store), str(out), "run").close("FAILED")
    with away(store), caplog.at_level(logging.WARNING):
        began = time.monotonic()
        tracker = make_tracker(config(store), str(out), "run")
        tell_all(tracker, out)
        tracker.flush()
        assert time.monotonic() - began < 2
        tracker.close()
        assert time.monotonic() - began < 5 * PATIENCE_S + 2
        assert "track --send" in caplog.text
        assert len(read_waiting(open_store(out))) == 256
        assert not send(out)  # it is still away
        assert "0 sent, 256 calls: 1 params, 1 announce, 250 metrics" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(250), 250]
    waiting = read_waiting(open_store(out))
    assert send(out) and not open_store(out).exists(WAITING)
    assert tracker.run_id
    found = logged(store, tracker.run_id)
    assert found == {
        "params": {"seed": "0"}, "loss": [(step, step / 2) for step in range(250)], "gap": 0.25,
        "models": [("run", [("gap.em", 0.25)])], "outputs": 1, "datasets": ["d test"],
        "files": ["evaluation/cases.parquet"], "status": "FINISHED",
    }  # fmt: skip
    write_waiting(open_store(out), waiting)  # as if the sender had died before it could note its success
    assert send(out) and logged(store, tracker.run_id) == found


def test_mlflow_dies_in_mid_run(store: str, tmp_path: Path) -> None:
    """With connections open: what it has taken is not sent again, what it has not taken waits."""
    out = tmp_path / "run"
    tracker = make_tracker(config(store), str(out), "run")
    tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.run_id
    while "loss" not in client(store).get_run(tracker.run_id).data.metrics:
        time.sleep(0.1)
    with away(store):
        tracker.log_metrics({"loss": 2.0}, 2)
        tracker.close()
        assert [(one.kind, one.args.get("step")) for one in read_waiting(open_store(out))] == [
            ("metrics", 2), ("end", None),
        ]  # fmt: skip
    assert send(out)
    history = client(store).get_metric_history(tracker.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 1.0), (2, 2.0)]


def test_a_trial_that_began_without_its_sweep_becomes_its_child(store: str, tmp_path: Path) -> None:
    sweep, trial = tmp_path / "sweep", tmp_path / "sweep/trials/seed=0"
    make_tracker(config(store), str(sweep), "sweep").close()
    with away(store):
        child = make_tracker(config(store), str(trial), "seed=0", parent_run_id="not known")
        child.log_step({"step": 0, "loss": 1.0})
        child.close()
        assert child.run_id is None
    record = open_store(trial).read_json("tracking.json")
    open_store(trial).write_json("tracking.json", {**record, "parent": None})
    assert send(sweep)
    parent, made = read_target(open_store(sweep)), read_target(open_store(trial))
    assert parent and made and made.run_id
    tags = client(store).get_run(made.run_id).data.tags
    assert tags["mlflow.parentRunId"] == parent.run_id


def test_what_mlflow_finds_wrong_is_left_out(store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = make_tracker(config(store), str(tmp_path / "run"), "run")
    tracker.log_params({"seed": 0})
    with caplog.at_level(logging.WARNING):
        tracker.log_params({"seed": 1})
        tracker.log_file("gone.json")
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.close()
    assert tracker.run_id
    run = client(store).get_run(tracker.run_id)
    assert (run.data.params, run.data.metrics, run.info.status) == ({"seed": "0"}, {"loss": 1.0}, "FINISHED")
    assert "refuses params" in caplog.text and "refuses file gone.json" in caplog.text


class Fake:
    """MLflow as a Sender sees it: `failures` batches fail; `stuck` ones never end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int = 0, stuck: bool = False) -> None:
        self.failures, self.stuck = failures, stuck
        self.steps: list[int] = []
        self.batches = 0
        self.target = Target("http://mlflow", "e", "run", run_id="1")
        monkeypatch.setattr(tracking_sender, "open_run", lambda target, store, running: self)

    def send(self, calls: list[Call]) -> None:
        if self.stuck:
            threading.Event().wait(60)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("reset")
        self.batches += 1
        self.steps += [call.args["step"] for call in calls]

    def sender(self, folder: Path) -> Sender:
        sender = Sender(open_store(folder), self.target, [])
        sender.start(5)
        return sender


def metrics(step: int) -> Call:
    return Call("metrics", {"metrics": {"loss": 1.0}, "step": step}, 1)


def test_a_failed_batch_is_sent_again_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, failures=3)
    sender = fake.sender(tmp_path)
    for step in range(120):
        sender.put(metrics(step))
    assert sender.close(5) == []
    assert fake.steps == list(range(120)) and fake.batches <= 4
    assert not open_store(tmp_path).exists(WAITING)


def test_a_server_that_never_answers_costs_the_patience_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = Fake(monkeypatch, stuck=True).sender(tmp_path)
    sender.put(metrics(0))
    sender.press()
    began = time.monotonic()
    assert len(sender.close(PATIENCE_S)) == 1
    assert PATIENCE_S <= time.monotonic() - began < PATIENCE_S + 2
    assert read_waiting(open_store(tmp_path)) == [metrics(0)]


def test_the_next_process_sends_what_the_last_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_waiting(open_store(tmp_path), [metrics(0)])
    fake = Fake(monkeypatch)
    sender = Sender(open_store(tmp_path), fake.target, read_waiting(open_store(tmp_path)))
    sender.start(5)
    sender.put(metrics(1))
    assert sender.close(5) == [] and fake.steps == [0, 1]
    assert not open_store(tmp_path).exists(WAITING)


def test_a_damaged_queue_is_named_and_ends_no_run(store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    make_tracker(config(store), str(out), "run").close()
    write_waiting(open_store(out), [metrics(3)])
    path = out / WAITING
    path.write_bytes(path.read_bytes().replace(b"1.0", b"9.0"))
    with pytest.raises(UserError, match=r"waiting.jsonl is damaged \(it has another checksum .*: delete it"):
        send(out)
    with caplog.at_level(logging.WARNING):
        make_tracker(config(store), str(out), "run").close()
    assert "is damaged" in caplog.text


def test_files_come_after_all_other_calls() -> None:
    file, end = Call("file", {"name": "a", "folder": ""}, 1), Call("end", {"status": "FINISHED"}, 1)
    assert first_batch([file, metrics(0), metrics(1), end]) == [metrics(0), metrics(1)]
    assert first_batch([file, end, metrics(0)]) == [end]
    assert first_batch([file]) == [file]
