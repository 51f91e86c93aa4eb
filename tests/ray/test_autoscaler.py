"""A sweep on an autoscaling cluster, as its users run it: a head without workers, nodes that come for the groups of its
trials, one that is killed, a spot type that never comes. Ray's own autoscaler; its nodes are processes of this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from head import head
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
REPO = Path(__file__).parents[2]
VALUES = ["0", "0.1", "1"]
STEPS = 120
SWEEP = [
    "kl_weight=[0,0.1,1]", f"steps={STEPS}", "batch_size=16", "task.train_cases=64", "task.test_cases=32",
    "rollout.engine=transformers", "supervision.rule=online", "supervision.agreement=0.8", "tracking.backend=jsonl",
    "train.checkpoint_every=20",
]  # fmt: skip
# What a trial needs, a trainer and an engine, is a node of any type. The most wanted type never comes, and there is one
# node of the next, so the second trial at once runs on demand; there is no room for a third.
NODE = {"resources": {"CPU": 2, "object_store_memory": 150_000_000}, "node_config": {}, "min_workers": 0}
TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "scarce_spot": {**NODE, "max_workers": 2, "priority": 20, "labels": {"kind": "scarce_spot"}},
    "spot": {**NODE, "max_workers": 1, "priority": 10, "labels": {"kind": "spot"}},
    "on_demand": {**NODE, "max_workers": 1, "priority": 0, "labels": {"kind": "on_demand"}},
}
EMPTY_LISTS = (
    "setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands", "rsync_exclude",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_filter",
)  # fmt: skip


def autoscaler(home: Path) -> Callable[[str], tuple[Path, dict[str, str]]]:
    """The config where Ray's cluster launcher puts it on a head, and the environment of Ray's fake nodes."""

    def make(address: str) -> tuple[Path, dict[str, str]]:
        provider = {
            "type": "external", "module": "scarce_provider.ScarceProvider", "never": ["scarce_spot"],
            "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
            "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID, "gcs_address": address,
        }  # fmt: skip
        config = {
            "cluster_name": "scarce", "max_workers": 2, "idle_timeout_minutes": 0.15, "upscaling_speed": 1,
            "provider": provider, "available_node_types": TYPES, "head_node_type": "ray.head.default", "auth": {},
            "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
            **{name: [] for name in EMPTY_LISTS},
        }  # fmt: skip
        file = home / "ray_bootstrap_config.yaml"
        file.write_text(yaml.safe_dump(config))
        return file, {
            "HOME": str(home), "PYTHONPATH": f"{REPO}:{Path(__file__).parent}", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": "20",  # a pending node is given up
            "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "RAY_worker_niceness": "0",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }  # fmt: skip

    return make


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that counts as one all nodes share: it is not on the root file system."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def kinds() -> dict[str, str]:
    """The type of every living node beside the head, by node id."""
    found = {node["NodeID"]: node["Labels"].get("kind", "") for node in ray.nodes() if node["Alive"]}
    found.pop(FAKE_HEAD_NODE_ID, None)
    return found


def kill_node(node: str) -> None:
    """SIGKILL of the raylet of a node, as when a spot instance goes: what runs on it ends with it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "raylet" and process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING") == node:
                process.send_signal(signal.SIGKILL)
                return
    raise AssertionError(f"there is no raylet of node {node}")


def rows(folder: Path) -> list[dict[str, Any]]:
    """The summaries of a sweep without their times."""
    found = json.loads((folder / "sweep.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "timing_s"} for row in found]


def submit(address: str, env: dict[str, str], log: Path, out: Path) -> subprocess.Popen:
    """Without --working-dir: nodes of one machine unpack it into one folder, each anew under the others' feet."""
    with log.open("w") as output:
        return subprocess.Popen(
            [
                Path(sys.executable).with_name("ray"), "job", "submit", "--address", address,
                "--", "python", str(REPO / "jobs" / "sweep_lambda.py"), *SWEEP, f"output_dir={out}",
                "wait_for_nodes=true",
            ],
            cwd=REPO, env=env, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def watch(job: subprocess.Popen, out: Path) -> tuple[list[set[str]], str]:
    """(the types of the nodes that were there, by the second; the node that was killed), until the job is done.

    The spot node is killed when both trials that run have a checkpoint.
    """
    seen, killed = [], ""
    while job.poll() is None:
        nodes = kinds()
        seen.append(set(nodes.values()))
        started = {path.parents[1] for path in out.glob("trials/*/checkpoints/*")}
        if not killed and len(started) >= 2 and "spot" in nodes.values():
            killed = next(node for node, kind in nodes.items() if kind == "spot")
            kill_node(killed)
        time.sleep(1)
    return seen, killed


def test_a_sweep_fills_the_cluster_and_survives_a_lost_node(shared, tmp_path):
    home, out, alone = tmp_path / "home", shared / "sweep", tmp_path / "alone"
    home.mkdir()
    command = [sys.executable, "jobs/sweep_lambda.py", *SWEEP, f"output_dir={alone}"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "job.log"
    with head(tmp_path, cpus=0, autoscaler=autoscaler(home)) as (address, env):
        job = submit(address, env, log, out)
        try:
            with connected(env):
                seen, killed = watch(job, out)
                said = log.read_text()
                assert job.wait() == 0, said[-6000:]
                gone = time.monotonic() + 120
                while kinds() and time.monotonic() < gone:
                    time.sleep(1)
                assert not kinds()  # all idle, and away
        finally:
            job.kill()
    assert killed, said[-6000:]
    assert "up to 2 of 3 at once" in said
    assert {"spot", "on_demand"} in seen and not any("scarce_spot" in kinds for kinds in seen)
    first = next(kinds for kinds in seen if kinds)
    assert "spot" in first  # before what costs more
    assert rows(out) == rows(alone)
    for value in VALUES:
        name = f"kl_weight={value},seed=0"
        one, other = (root / "trials" / name / "policy" / "model.safetensors" for root in (out, alone))
        assert one.read_bytes() == other.read_bytes()
        lines = map(json.loads, (out / "trials" / name / "metrics.jsonl").read_text().splitlines())
        assert [line["step"] for line in lines if "loss" in line].count(0) == 1  # each trial began once


@contextlib.contextmanager
def connected(env: dict[str, str]) -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = env["RAY_AUTH_MODE"]
    ray.init(env["RAY_ADDRESS"], logging_level="ERROR", log_to_driver=False, namespace="watch")
    try:
        yield
    finally:
        ray.shutdown()
