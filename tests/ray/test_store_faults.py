"""A run whose store fails a share of all requests, or is away for a while, ends at the bits of an undisturbed one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from introspect_ray.labels.store import read_labels
from introspect_ray.storage import open_store
from tests.faulty_proxy import FAULTS, faulty_proxy

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
REPO = Path(__file__).parents[2]
RUN = ["steps=6", "batch_size=16", "task.train_cases=64", "task.test_cases=32", "rollout.engine=transformers",
       "supervision.rule=online", "supervision.agreement=0.7", "tracking.backend=jsonl",
       "train.checkpoint_every=2"]  # fmt: skip


def train(out: str, **environment: str) -> subprocess.CompletedProcess:
    command, env = [sys.executable, "jobs/train.py", *RUN, f"output_dir={out}"], {**os.environ, **environment}
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=500)


def result(out: str) -> tuple[bytes, list]:
    return open_store(out).read_bytes("policy/model.safetensors"), list(read_labels(f"{out}/labels"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list]:
    out = str(tmp_path_factory.mktemp("undisturbed") / "run")
    done = train(out)
    assert done.returncode == 0, done.stderr
    return result(out)


def test_a_fifth_of_all_requests_fails(undisturbed, s3_env, s3_server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where the downloaded reference is kept
    with faulty_proxy(s3_server, 0.2, seed=1) as proxy:
        done = train(f"{s3_env}/run", AWS_ENDPOINT_URL=proxy.url)
    assert done.returncode == 0, done.stderr
    assert sum(proxy.seen[fault] for fault in FAULTS) > 20
    assert result(f"{s3_env}/run") == undisturbed


@pytest.mark.slow  # tests/unit/storage/test_outages.py waits for a store in `make test`
@pytest.mark.parametrize("moment", ["labels", "checkpoints"])
def test_the_store_is_away_for_16_seconds(undisturbed, s3_env, s3_server, tmp_path, monkeypatch, moment):
    """From the moment at which the first label part, or the first file of a checkpoint, is there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    store, away = open_store(f"{s3_env}/run"), threading.Event()

    def outage() -> None:
        while not store.list(moment):
            time.sleep(0.1)
        proxy.away.set()
        time.sleep(16.0)
        proxy.away.clear()
        away.set()

    with faulty_proxy(s3_server, 0.0) as proxy:
        threading.Thread(target=outage, daemon=True).start()  # it asks the server itself, past the proxy
        done = train(f"{s3_env}/run", AWS_ENDPOINT_URL=proxy.url)
    assert done.returncode == 0, done.stderr
    assert away.is_set() and proxy.seen["503"]
    assert result(f"{s3_env}/run") == undisturbed
