"""What MLflow's pages go by: the order and steps of metrics, the tags of an experiment, and what runs inherit."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from introspect_ray.config import TrackingConfig
from introspect_ray.storage.tracker import TrainedPolicy
from introspect_ray.storage.tracking import make_tracker
from introspect_ray.storage.tracking_store import prepare_mlflow
from introspect_ray.storage.tracking_view import KIND, NOTE, VIEW, experiment_tags


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('pages')}/mlflow.db"
    prepare_mlflow(uri, "introspect-ray")
    return uri


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def test_announced_results_are_a_runs_first_metrics_and_nan_until_they_are_there(store: str, tmp_path: Path) -> None:
    cfg = TrackingConfig(uri=store)
    with make_tracker(cfg, str(tmp_path / "a"), "a") as done:
        done.announce(["gap.em", "gap.content"])
        done.log_step({"step": 0, "loss": 0.5, "lag": None})
        done.log_step({"step": 1, "loss": 0.25, "lag": None})
        done.log_result({"gap": {"em": 0.125, "content": 0.5}, "behavior": 1.0}, 2)
    with pytest.raises(RuntimeError), make_tracker(cfg, str(tmp_path / "b"), "b") as stopped:
        stopped.announce(["gap.em", "gap.content"])
        raise RuntimeError("training diverged:\nloss nan")
    found = client(store).get_run(done.run_id).data.metrics
    assert list(found.items()) == [
        ("gap.em", 0.125), ("gap.content", 0.5), ("train_batch.loss", 0.25), ("behavior", 1.0),
    ]  # fmt: skip
    failed = client(store).get_run(stopped.run_id)
    assert math.isnan(failed.data.metrics["gap.em"]) and failed.data.tags["failed"] == "training diverged: loss nan"
    mine = f"attributes.run_id IN ('{done.run_id}', '{stopped.run_id}')"
    ranked = client(store).search_runs([failed.info.experiment_id], mine, order_by=["metrics.`gap.em` DESC"])
    assert [run.info.run_name for run in ranked] == ["a", "b"]
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 0, "loss": 0.5} and lines[2]["step"] == 2


def test_a_result_is_a_bar_unless_it_has_a_curve(store: str, tmp_path: Path) -> None:
    """MLflow draws what has a step above 0 as a curve."""
    with make_tracker(TrackingConfig(uri=store), str(tmp_path), "run") as tracker:
        tracker.log_metrics({"objective": 0.5}, 5)
        tracker.log_result({"objective": 0.75, "gap": 0.25}, 10)
    history = {
        name: [(m.step, m.value) for m in client(store).get_metric_history(tracker.run_id, name)]
        for name in ("objective", "gap")
    }
    assert history == {"objective": [(5, 0.5), (10, 0.75)], "gap": [(0, 0.25)]}


def test_a_policy_whose_name_mlflow_would_refuse(store: str, tmp_path: Path) -> None:
    policy = TrainedPolicy("kl_weight=0.1,seed=0", "s3://bucket/policy", {"kl_weight": "0.1"}, None)
    with make_tracker(TrackingConfig(uri=store), str(tmp_path), "run") as tracker:
        tracker.log_result({"gap": 0.25}, 3, policy)
    (model,) = client(store).search_logged_models(["1"], "name = 'kl_weight=0_1,seed=0'")
    assert (model.status, model.tags["uri"]) == ("READY", "s3://bucket/policy")
    assert [(one.key, one.value) for one in model.metrics] == [("gap", 0.25)]


def test_a_child_names_who_started_the_job(store: str, tmp_path: Path) -> None:
    """Its own process is one of Ray's workers, with another script and no job."""
    cfg = TrackingConfig(uri=store)
    with make_tracker(cfg, str(tmp_path / "sweep"), "sweep") as parent:
        parent.log_tags({"ray_job_id": "raysubmit_1", "mlflow.source.name": "jobs/sweep_lambda.py", "task": "organism"})
        while "task" not in client(store).get_run(parent.run_id).data.tags:  # they are sent in a thread
            time.sleep(0.1)
        with make_tracker(cfg, str(tmp_path / "a"), "a", parent_run_id=parent.run_id) as child:
            pass
    tags = client(store).get_run(child.run_id).data.tags
    assert (tags["ray_job_id"], tags["mlflow.source.name"]) == ("raysubmit_1", "jobs/sweep_lambda.py")
    assert len(tags["mlflow.source.git.commit"]) == 40 and "task" not in tags


def test_an_experiment_offers_its_runs_by_the_swept_keys(store: str, tmp_path: Path) -> None:
    with make_tracker(TrackingConfig(uri=store), str(tmp_path), "sweep") as tracker:
        tracker.show_runs_by(["kl_weight", "learning_rate"])
    tags = client(store).get_experiment("1").tags
    assert tags[KIND] == "custom_model_development"
    view = json.loads(tags[f"{VIEW}gap-by-kl_weight-learning_rate"])
    state = json.loads(view["state"])
    assert view["name"] == "gap by kl_weight learning_rate"
    assert state["selectedColumns"][:4] == [
        "params.`kl_weight`", "params.`learning_rate`", "params.`seed`", "metrics.`gap.em`",
    ]  # fmt: skip
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`gap.em`", False)
    link = "#/experiments/1/runs?viewStateShareKey=gap-by-kl_weight-learning_rate&workflowType=machine_learning"
    assert f"[gap by kl_weight learning_rate]({link})" in tags[NOTE]
    assert tracker.page == f"mlflow server --backend-store-uri {store}; then http://127.0.0.1:5000/{link}"


def test_what_a_person_chose_for_an_experiment_stays() -> None:
    own = {KIND: "genai_development", NOTE: "Our runs", f"{VIEW}gap": "{}"}
    assert experiment_tags("1", own, [], 0) == {}
    guessed = experiment_tags("1", {**own, KIND: "genai_development_inferred"}, [], 0)
    assert guessed == {KIND: "custom_model_development"}
