"""A running job, seen from another process: `introspect-ray status`, and what Prometheus reads from its node."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from head import kill_family
from prometheus_client.parser import text_string_to_metric_families

from introspect_ray.actors.metrics import METRICS
from introspect_ray.runs.status import local_clusters

pytestmark = pytest.mark.ray
NODE = """
import logging, ray, sys
from introspect_ray.runs.local_ray import loopback
with loopback():
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
(node,) = ray.nodes()
print(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")
"""


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run([sys.executable, *argv], env=env, capture_output=True, text=True)


def until(look: Callable[[], object], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(1.0)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, int]]:
    """(address of the local cluster, output folder, process) of an online run that goes on for minutes."""
    root = tmp_path_factory.mktemp("job")
    keys = {
        "output_dir": root / "seen", "cache_dir": root / "cache", "task.train_cases": 96, "task.test_cases": 64,
        "steps": 100_000, "batch_size": 24, "supervision.rule": "online", "alarms.agreement": "null",
        "alarms.engine_gap": "null", "train.checkpoint_every": 20, "tracking.backend": "none",
    }  # fmt: skip
    before = set(local_clusters())
    env = {**os.environ, "RAY_metrics_report_interval_ms": "500"}
    env.pop("RAY_ADDRESS", None)
    with open(root / "job.log", "wb") as log:
        words = [f"{key}={value}" for key, value in keys.items()]
        process = subprocess.Popen(
            [sys.executable, "-m", "introspect_ray", "train", *words], env=env, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        until(lambda: process.poll() is not None or set(local_clusters()) - before, "no cluster")
        assert process.poll() is None, (root / "job.log").read_text()
        (address,) = set(local_clusters()) - before
        yield address, root / "seen", process.pid
    finally:
        if process.poll() is None:
            kill_family(process)


def test_status_shows_its_steps_and_its_checkpoints(job):
    address, out, _ = job
    said: list[str] = []

    def look() -> bool:
        done = command("-m", "introspect_ray", "status", f"ray_address={address}")
        said[:] = done.stdout.splitlines()
        return any(line.startswith("seen ") and " GB in " in line for line in said)

    until(look, "\n".join(said))
    assert said[0].startswith(f"job        {out}, organism on organism, since ")
    header, row = next(at for at in pairwise(said) if at[0].startswith("run "))
    assert header.split()[:9] == ["run", "step", "steps/s", "loss", "self", "orig", "beh", "ν", "lag"]
    step, _, total = row.split()[1].partition("/")
    assert int(step) > 20 and total == "100000" and row.split()[8] == "0"
    assert said[-1].startswith("cluster    1 node, CPU ")


def test_nothing_of_it_listens_where_others_could_reach_it(job):
    """By then it trains: engine, training worker and relabeler are up."""
    driver = psutil.Process(job[2])
    listening: dict[str, set[str]] = {}
    for one in (driver, *driver.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            name, sockets = one.name(), one.net_connections("inet")
            for socket in (each for each in sockets if each.status == psutil.CONN_LISTEN):
                listening.setdefault(name, set()).add(socket.laddr.ip)
    print(listening)
    assert {"gcs_server", "raylet"} <= listening.keys()
    assert set().union(*listening.values()) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_prometheus_reads_every_metric_from_the_node(job):
    url = command("-c", NODE, job[0]).stdout.strip()
    seen: dict[str, set[str]] = {}

    def look() -> bool:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        for family in text_string_to_metric_families(text):
            name = family.name.removeprefix("ray_")
            if name in METRICS and METRICS[name].kind == family.type:
                seen[name] = {sample.labels["run"] for sample in family.samples}
        return set(seen) == set(METRICS)

    until(look, f"missing: {sorted(set(METRICS) - set(seen))}")
    assert all(runs == {"seen"} for runs in seen.values())


def test_a_cluster_that_is_gone_is_one_line(job):
    done = command("-m", "introspect_ray", "status", "ray_address=127.0.0.1:9")
    assert done.returncode == 2 and done.stderr.startswith("error: no Ray cluster at 127.0.0.1:9: ")
    assert done.stderr.count("\n") == 1
