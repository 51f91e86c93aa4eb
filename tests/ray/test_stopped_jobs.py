"""Jobs that SIGINT or SIGTERM ends: a checkpoint, one line, no process left, in time; --resume ends at the same bits.

And jobs that find another one at work in their folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from head import kill_family
from test_jobs import ONLINE, REPO, job, same_run

from introspect_ray.storage.claim_places import NAME as CLAIM

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
TRAIN = ["steps=200", *ONLINE]  # without checkpoints of its own


def start(name: str, *args: str, log: Path) -> subprocess.Popen[bytes]:
    """The job in a process group of its own, as a terminal starts one."""
    with log.open("wb") as output:
        command = [sys.executable, f"jobs/{name}.py", *args]
        return subprocess.Popen(command, cwd=REPO, stdout=output, stderr=output, start_new_session=True)


def wait_for(seen: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 240
    while not seen():
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.02)


def stop(process: subprocess.Popen[bytes], sent: signal.Signals, log: Path, *, group: bool = False) -> str:
    """Send the signal (to the whole group: Ctrl-C in a terminal), check how the job ends; its last line."""
    family = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    os.killpg(process.pid, sent) if group else process.send_signal(sent)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=60)
    seconds, said = time.monotonic() - began, log.read_text()
    left = psutil.wait_procs(family, timeout=5)[1]  # Ray's own reaper takes a second
    print(f"{sent.name}: exit {process.returncode} after {seconds:.1f} s, {len(family)} processes, {len(left)} left")
    print(said)
    assert process.returncode == 128 + sent and seconds < 30 and not left
    assert "Traceback" not in said and "Stack trace" not in said and "was killed" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"stopped: {sent.name}")
    return last


def steps(out: Path) -> int:
    """Steps whose metrics are on disk."""
    rows = out / "metrics.jsonl"
    return rows.read_text().count('"loss"') if rows.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done = job("train", *TRAIN, f"output_dir={out}")
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("sent", "group"),
    [(signal.SIGTERM, False), pytest.param(signal.SIGINT, True, marks=pytest.mark.slow)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_training_leaves_a_checkpoint_and_goes_on_to_the_same_bits(tmp_path, undisturbed, sent, group):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start("train", *TRAIN, f"output_dir={out}", log=log)
    wait_for(lambda: steps(out) > 5, process, log)
    last = stop(process, sent, log, group=group)
    assert last.startswith(f"stopped: {sent.name}: the checkpoint of step ")
    assert last.endswith(" is stored; go on with --resume") and not (out / CLAIM).exists()
    step = last.split("step ")[1].split()[0]
    done = job("train", *TRAIN, f"output_dir={out}", "--resume")
    assert done.returncode == 0, done.stderr
    assert f"resume   from step {step}" in done.stdout and same_run(out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_the_trials_of_a_sweep_leave_checkpoints(tmp_path, at_once):
    """Three trials: those under way are waited for, the others do not start. One after another they train on the same
    engines; at once the second has a place of its own."""
    out, log = tmp_path / "sweep", tmp_path / "log"
    args = ["kl_weight=[0,1,5]", *TRAIN, f"sweep.trials_at_once={at_once}", f"output_dir={out}"]
    process = start("sweep_lambda", *args, log=log)
    wait_for(lambda: sum(steps(one.parent) > 3 for one in out.glob("trials/*/run.json")) == at_once, process, log)
    last = stop(process, signal.SIGINT, log)
    assert f"3 of 3 trials are left, {at_once} of them under way (the checkpoint of step" in last
    assert len(list(out.glob("trials/*/checkpoints"))) == at_once and not (out / "sweep.json").exists()
    done = job("sweep_lambda", *args, "--resume")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((out / "sweep.json").read_text())["rows"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("where", ["Ray starts", "engines start"])
def test_a_job_that_has_not_begun_to_train_ends_at_once(tmp_path, where):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start("train", *TRAIN, f"output_dir={out}", log=log)

    def raylet() -> bool:
        return any(child.name() == "gcs_server" for child in psutil.Process(process.pid).children())

    wait_for(raylet if where == "Ray starts" else (out / "run.json").exists, process, log)
    assert stop(process, signal.SIGTERM, log) == "stopped: SIGTERM; go on with --resume"
    done = job("train", "steps=2", *ONLINE, f"output_dir={tmp_path / 'other'}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_label_and_evaluate_end_at_once_and_go_on(tmp_path):
    out, log = tmp_path / "set", tmp_path / "log"
    cases = ["task.train_cases=1024", "task.test_cases=256", "rollout.engine=transformers", "rollout.group_size=4"]
    process = start("label", *cases, "--explain", f"output_dir={out}", log=log)
    wait_for(lambda: list(out.glob("pairs/*.parquet")), process, log)
    stop(process, signal.SIGTERM, log)
    done = job("label", *cases, "--explain", f"output_dir={out}", "--resume")
    assert done.returncode == 0 and (out / "labels.json").exists(), done.stderr
    process = start("evaluate", *cases, f"output_dir={tmp_path / 'eval'}", log=log)
    wait_for((tmp_path / "eval" / "evaluation_run.json").exists, process, log)
    stop(process, signal.SIGINT, log)
    done = job("evaluate", *cases, f"output_dir={tmp_path / 'eval'}", "--resume")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_reproduce_goes_on_with_the_same_command(tmp_path):
    settings, out, log = tmp_path / "settings.yaml", tmp_path / "out", tmp_path / "log"
    settings.write_text(
        "run: {rollout: {engine: transformers}}\n"
        "kinds: {bundled: {steps: 200, batch_size: 16, task: {train_cases: 64, test_cases: 64}}}\n"
        "values: {kl_weight: [0.0, 1.0]}\nseeds: {sweeps: [0]}\n"
    )
    args = ["fig4", "--settings", str(settings), f"output_dir={out}"]
    process = start("reproduce", *args, log=log)
    wait_for(lambda: any(steps(one.parent) > 3 for one in out.glob("runs/*/run.json")), process, log)
    second = job("reproduce", *args)
    assert second.returncode == 2 and f"`reproduce` on {os.uname().nodename} (process {process.pid} " in second.stderr
    last = stop(process, signal.SIGTERM, log)
    assert last.endswith("; the same command goes on")
    done = job("reproduce", *args)
    assert done.returncode == 0 and len(list(out.glob("runs/*/summary.json"))) == 2, done.stderr


@pytest.mark.slow
def test_two_jobs_on_one_folder_know_of_each_other(tmp_path, undisturbed):
    """The second is refused while the first one trains; when that one is killed, it goes on at once, and no label is
    there twice."""
    out, log = tmp_path / "run", tmp_path / "log"
    args = [*TRAIN, "train.checkpoint_every=5", f"output_dir={out}"]
    process = start("train", *args, log=log)
    wait_for(lambda: steps(out) > 8, process, log)
    second = job("train", *args, "--resume")
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert f"`train` on {os.uname().nodename} (process {process.pid} " in second.stderr
    kill_family(process)
    done = job("train", *args, "--resume")
    assert done.returncode == 0 and "which has ended: taken over" in done.stdout, done.stderr
    assert same_run(out, undisturbed)
