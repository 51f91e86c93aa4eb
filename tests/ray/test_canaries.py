"""Secrets of the environment are in nothing that a run leaves: output folder, MLflow's store, terminal and Ray's logs,
also at --log-level debug."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from head import short_temp

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
CANARY = "canary-5d4140-"
SECRETS = (
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "OPENAI_API_KEY",
    "PGPASSWORD",
    "WANDB_API_KEY",
)


def test_a_run_leaves_no_secret_of_its_environment(tmp_path: Path, s3_env: str) -> None:
    """Labels and reference go to S3 (cache_dir), so that its client signs requests in the driver and in workers."""
    temp = short_temp(tmp_path)
    env = {**os.environ, **{name: CANARY + name for name in SECRETS}, "RAY_TMPDIR": temp}
    env.pop("RAY_ADDRESS", None)
    (tmp_path / ".env").write_text(f"TOKEN={CANARY}file")
    keys = ["steps=2", "batch_size=16", "task.train_cases=64", "task.test_cases=32", "supervision.rule=online"]
    words = [*keys, f"output_dir={tmp_path / 'run'}", f"cache_dir={s3_env}/cache", "--log-level", "debug"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "introspect_ray", "train", *words],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        secrets = [CANARY.encode(), os.environ["AWS_SECRET_ACCESS_KEY"].encode()]
        assert not any(secret in (done.stdout + done.stderr).encode() for secret in secrets)
        places = [tmp_path / "run", *Path(temp).glob("ray/session_2*/logs")]
        files = [file for place in places for file in place.rglob("*") if file.is_file() and not file.is_symlink()]
        assert {"run.json", "metrics.jsonl", "mlflow.db", "gcs_server.out"} <= {file.name for file in files}
        assert [file for file in files if any(secret in file.read_bytes() for secret in secrets)] == []
    finally:
        shutil.rmtree(temp, ignore_errors=True)
