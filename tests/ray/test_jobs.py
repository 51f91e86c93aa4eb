"""The jobs as a user runs them: processes, exit codes, and the files outsiders rely on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from head import head, kill_family

from introspect_ray.scores.summary import check_summary

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
REPO = Path(__file__).parents[2]
SMALL = ["steps=2", "batch_size=16", "task.train_cases=64", "task.test_cases=32"]


def job(name: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", *args], cwd=REPO, capture_output=True, text=True, timeout=500
    )


def test_sweep_lambda_leaves_what_outsiders_rely_on(tmp_path):
    from mlflow import MlflowClient

    out = tmp_path / "sweep"
    done = job("sweep_lambda", *SMALL, f"output_dir={out}", "kl_weight=[1,0]", "seeds=[0]")
    assert done.returncode == 0, done.stderr
    written = json.loads((out / "sweep.json").read_text())
    summaries = written["rows"]
    for summary in summaries:
        check_summary(summary)
    assert [s["kl_weight"] for s in summaries] == [0, 1]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert (len(parents), len(children)) == (1, 2)
    assert {run.info.status for run in runs} == {"FINISHED"}
    gaps = [point["gap"] for point in written["aggregate"]]
    for name, expected in (
        ("sweep.kl_weight", [0, 1]),
        ("sweep.gap.em", [gap["em"]["value"] for gap in gaps]),
        ("sweep.gap_ci.content_low", [gap["content"]["ci"][0] for gap in gaps]),
    ):
        history = client.get_metric_history(parents[0].info.run_id, name)
        assert [(one.step, one.value) for one in history] == list(enumerate(expected))
    assert {run.data.params["kl_weight"] for run in children} == {"0.0", "1.0"}
    assert all(next(iter(run.data.metrics)) == "gap.em" and "train_batch.loss" in run.data.metrics for run in children)
    best = client.search_logged_models(
        [parents[0].info.experiment_id], order_by=[{"field_name": "metrics.gap.em", "ascending": False}]
    )
    assert [model.source_run_id for model in best] == [
        run.info.run_id for run in sorted(children, key=lambda run: -run.data.metrics["gap.em"])
    ]
    assert Path(best[0].tags["uri"], "config.json").is_file()
    again = job("sweep_lambda", *SMALL, f"output_dir={out}", "kl_weight=[0,1]")
    assert again.returncode == 2
    assert again.stderr.startswith("error: ") and again.stderr.count("\n") == 1 and "--overwrite" in again.stderr


def test_a_trial_that_diverges_costs_the_sweep_no_other_result(tmp_path):
    """One step at a learning rate of 1e30 leaves weights whose forward is not finite: the trial stops at its second."""
    out = tmp_path / "sweep"
    done = job(
        "sweep_lr", *SMALL, f"output_dir={out}", "learning_rate=[1e30,1e-3]", "rollout.engine=transformers",
        "tracking.backend=jsonl",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("stopped: 1 of 2 trials failed, the first is learning_rate=1e+30,seed=0: training diverged")
    assert "Traceback" not in done.stderr
    assert [line.split(": ")[:2] for line in done.stdout.splitlines() if line.startswith("failed")] == [
        ["failed   learning_rate=1e+30,seed=0", "training diverged"]
    ]
    kept, failed = json.loads((out / "sweep.json").read_text())["rows"]
    assert kept.pop("learning_rate") == 1e-3
    check_summary(kept)
    assert (failed["learning_rate"], failed["seed"]) == (1e30, 0) and "training diverged: loss" in failed["failed"]
    assert (out / "sweep.png").is_file()


def test_lora_alpha_train_and_evaluate_by_transformers_engine(tmp_path):
    """Mixed supervision with the second organism, LoRA, and the engine for machines without vLLM, in one run."""
    out = tmp_path / "lora"
    done = job(
        "train", *SMALL, f"output_dir={out}", "method=lora", "lora_rank=8", "supervision.rule=mixed",
        "supervision.mixing_ratio=0.5", "rollout.engine=transformers", "tracking.backend=jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    check_summary(summary)
    assert summary["method"] == "lora" and summary["supervision"]["mixing_ratio"] == 0.5
    assert (out / "policy" / "adapter_model.safetensors").is_file()
    recorded = (out / "run.json").read_text()
    evaluated = job(
        "evaluate", *SMALL, f"output_dir={out}", "--resume", f"eval.policy={out / 'policy'}",
        "rollout.engine=transformers", "eval.against=[organism:second]",
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    scores = json.loads((out / "evaluation.json").read_text())
    assert (out / "run.json").read_text() == recorded  # whose method and rule the evaluation does not have
    assert json.loads((out / "evaluation_run.json").read_text())["method"] == "full"
    assert not list((out / "cache" / "evaluated").iterdir())  # the merged adapter was there meanwhile
    assert scores["explanation"] == summary["explanation"] and scores["behavior"] == summary["behavior"]
    (third,) = scores["against"].values()  # another model's behaviour is explained by other numbers
    assert third.keys() == scores["explanation"]["self"].keys() and third != scores["explanation"]["orig"]


def test_everything_on_s3(tmp_path, s3_env, monkeypatch):
    """output_dir, checkpoints, label table, policy and caches on a real S3 server, nothing on the local disk."""
    from introspect_ray.labels.store import read_labels
    from introspect_ray.storage import open_store

    monkeypatch.setenv("HOME", str(tmp_path))  # where the downloaded reference is kept
    done = job(
        "train", "steps=4", *SMALL[1:], f"output_dir={s3_env}/run", "rollout.engine=transformers",
        "supervision.rule=online", "tracking.backend=jsonl", "train.checkpoint_every=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store = open_store(f"{s3_env}/run")
    check_summary(store.read_json("summary.json"))
    assert len(list(read_labels(f"{s3_env}/run/labels"))) == 4 * 16
    names = store.list()
    assert "policy/model.safetensors" in names and any(name.endswith(".distcp") for name in names)
    evaluated = job(
        "evaluate", *SMALL[1:], f"output_dir={s3_env}/eval", f"eval.policy={s3_env}/run/policy",
        "rollout.engine=transformers",
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    scores = open_store(f"{s3_env}/eval").read_json("evaluation.json")
    assert scores["policy"] == f"{s3_env}/run/policy"
    assert scores["explanation"] == store.read_json("summary.json")["explanation"]


@pytest.mark.slow
def test_two_ranks_resume_from_s3(tmp_path, s3_env, monkeypatch):
    """A run without its results is one that died at its end: it goes on and ends at the same bits."""
    from introspect_ray.storage import open_store

    monkeypatch.setenv("HOME", str(tmp_path))
    command = [
        "train", "steps=4", *SMALL[1:], f"output_dir={s3_env}/run", "rollout.engine=transformers",
        "train.num_workers=2", "tracking.backend=jsonl", "train.checkpoint_every=3",
    ]  # fmt: skip
    store = open_store(f"{s3_env}/run")
    assert job(*command).returncode == 0
    weights = store.read_bytes("policy/model.safetensors")
    for name in ("summary.json", "policy"):
        store.delete_prefix(name)
    done = job(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resume   from step 3" in done.stdout
    assert store.read_bytes("policy/model.safetensors") == weights


ONLINE = [
    "batch_size=16", "task.train_cases=64", "task.test_cases=32", "rollout.engine=transformers", "rollout.group_size=8",
    "supervision.rule=online", "supervision.agreement=0.7", "lag=1", "tracking.backend=jsonl",
]  # fmt: skip


@pytest.mark.slow
def test_the_size_of_the_pool_changes_nothing(tmp_path):
    """One and two rollout actors: the same labels and bit-identical weights, in an overlapped run."""
    runs = {count: tmp_path / str(count) for count in (1, 2)}
    for count, out in runs.items():
        done = job("train", "steps=6", *ONLINE, f"output_dir={out}", f"rollout.num_actors={count}")
        assert done.returncode == 0, done.stderr
    assert same_run(runs[1], runs[2])


@pytest.mark.slow
def test_a_killed_job_resumes_in_a_new_process(tmp_path):
    """The whole job dies by SIGKILL after a checkpoint; --resume goes on from it and ends at the same bits."""
    settings = ["steps=40", "train.checkpoint_every=4", *ONLINE]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert job("train", *settings, f"output_dir={undisturbed}").returncode == 0
    command = [sys.executable, "jobs/train.py", *settings, f"output_dir={killed}"]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = killed / "metrics.jsonl"
    while process.poll() is None and not (rows.exists() and '"step": 12' in rows.read_text()):
        time.sleep(0.05)
    kill_family(process)
    assert not (killed / "summary.json").exists(), "the run was over before it could be killed"
    done = job("train", *settings, f"output_dir={killed}", "--resume")
    assert done.returncode == 0, done.stderr
    assert same_run(undisturbed, killed)


def same_run(a: Path, b: Path) -> bool:
    """The same labels with the same provenance, and the same bytes of weights."""
    from introspect_ray.labels.store import read_labels

    labels = [list(read_labels(str(out / "labels"))) for out in (a, b)]
    weights = [(out / "policy" / "model.safetensors").read_bytes() for out in (a, b)]
    return labels[0] == labels[1] and weights[0] == weights[1]


@pytest.mark.slow
def test_ray_job_submit(tmp_path):
    """`ray start --head`, then the job as the README says; the head is stopped by its own processes' ids."""
    with head(tmp_path) as (address, env):
        command = [
            Path(sys.executable).with_name("ray"), "job", "submit", "--address", address, "--working-dir", ".", "--",
            "python", "jobs/sweep_lambda.py", *SMALL, f"output_dir={tmp_path / 'out'}", "kl_weight=[0,1]",
        ]  # fmt: skip
        for _ in range(20):  # a young head answers before its job agent is up
            done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=500)
            if "No available agent" not in done.stderr:
                break
            time.sleep(3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]) == 2
