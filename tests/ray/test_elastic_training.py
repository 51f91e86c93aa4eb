"""Elastic workers on nodes that come and go: a preemption with notice, an outage, and room for one more worker."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from head import head, kill_family, node

from introspect_ray.config import RunConfig
from introspect_ray.labels.store import read_labels
from introspect_ray.schedule import plan_ids
from introspect_ray.tasks import load_cases

REPO = Path(__file__).parents[2]
STEPS, EVERY = 240, 20
# Ray Train looks for room for another worker every five minutes; a test cannot wait for it.
TRAIN = """
import sys
from introspect_ray.runs import elastic
elastic.RESIZE_S = 2.0
from introspect_ray.commands import run
run("train", sys.argv[1:])
"""
NODES = """
import json, ray
ray.init(log_to_driver=False)
print(json.dumps({node["Resources"].get("CPU", 0): node["NodeID"] for node in ray.nodes() if node["Alive"]}))
"""


def until(found: Callable[[], object], process: subprocess.Popen, patience_s: float = 120.0) -> object:
    """What `found` finds, once it does, while the process runs."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end and process.poll() is None:
        if seen := found():
            return seen
        time.sleep(0.2)
    raise AssertionError(f"not found within {patience_s:g} s; the process ended with {process.poll()}")


def line(file: Path, pattern: str) -> Callable[[], re.Match | None]:
    """Looks for a line of a log."""
    return lambda: re.search(pattern, file.read_text(errors="replace"))


def ranks(out: Path) -> dict[int, int]:
    """By step, the workers that wrote the checkpoints that are there."""
    found = {}
    for file in (out / "checkpoints").glob("step-*/manifest.json"):
        with contextlib.suppress(OSError, ValueError):
            manifest = json.loads(file.read_text())
            found[manifest["step"]] = manifest["ranks"]
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(800)
def test_workers_follow_the_nodes_and_no_step_is_lost_or_made_twice(tmp_path):
    """Three CPUs for an engine and two workers. The node with two of them is preempted with a notice, so that one part
    has no room, the engine or the worker that is left, until one more node comes; then there is room for a second one.
    """
    out = tmp_path / "run"
    settings = [
        f"output_dir={out}", f"steps={STEPS}", "batch_size=24", "task.train_cases=96", "task.test_cases=32",
        "supervision.rule=online", "supervision.agreement=0.7", "rollout.engine=transformers", "rollout.group_size=64",
        "train.num_workers=[1,2]", f"train.checkpoint_every={EVERY}", "tracking.backend=jsonl", "wait_for_nodes=true",
    ]  # fmt: skip
    said, errors = tmp_path / "stdout.txt", tmp_path / "stderr.txt"

    with contextlib.ExitStack() as nodes, head(tmp_path, cpus=1) as (_, env):
        two = nodes.enter_context(node(tmp_path / "two.log", env, 2))
        env["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "1"
        with said.open("wb") as stdout, errors.open("wb") as stderr:
            job = subprocess.Popen(
                [sys.executable, "-c", TRAIN, *settings], cwd=REPO, env=env, stdout=stdout, stderr=stderr
            )
        try:
            until(lambda: 2 in ranks(out).values(), job)  # so the node is there
            listed = subprocess.run([sys.executable, "-c", NODES], env=env, capture_output=True, text=True, check=True)
            ids = {int(float(cpus)): name for cpus, name in json.loads(listed.stdout.splitlines()[-1]).items()}
            drain = [str(Path(sys.executable).parent / "ray"), "drain-node", f"--address={env['RAY_ADDRESS']}"]
            drain += [f"--node-id={ids[2]}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
            subprocess.run([*drain, "--deadline-remaining-seconds=600"], env=env, check=True, capture_output=True)
            left = until(
                line(errors, r"the checkpoint of step (\d+) is stored\).* going on from step (\d+) \(no failure"), job
            )
            assert left[1] == left[2]
            kill_family(two)
            waits = r"(1 to 2 training worker\(s\)|1 of 1 rollout actors)"
            until(line(said, rf"waiting  {waits} need 1 CPU.* each, since"), job)
            nodes.enter_context(node(tmp_path / "one.log", env, 1))
            until(line(said, rf"waited   for {waits}"), job)
            until(lambda: ranks(out).get(max(ranks(out))) == 1, job)
            nodes.enter_context(node(tmp_path / "another.log", env, 1))
            until(line(errors, r"there is room for 2 training workers, 1 were running\).*\(no failure\)"), job)
            job.wait(timeout=300)
        finally:
            if job.poll() is None:
                kill_family(job)
    assert job.returncode == 0, errors.read_text()[-3000:]
    cfg = RunConfig.model_validate(json.loads((out / "run.json").read_text()))
    ids = [case.case_id for case in load_cases(cfg.task)[0]]
    labels = list(read_labels(str(out / "labels")))
    assert [label.case_id for label in labels] == [name for step in range(STEPS) for name in plan_ids(cfg, ids, step)]
    assert all(label.provenance.cued_version == label.provenance.step for label in labels)
    assert max(ranks(out).items())[1] == 2
