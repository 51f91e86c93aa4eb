"""How faults are made, and what the user does about them. The table that names them all is in table.py."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import surroundings
from tests.chaos.job import REPO, TITLES, Around, Job
from tests.chaos.phases import EVERY
from tests.chaos.surroundings import Needs
from tests.damage import flips

# --- processes ----------------------------------------------------------------------------------------------------


def killed(part: str, which: int = 0) -> Callable[[Job], Any]:
    return lambda job: job.kill(part, which)


def both_killed(first: str, second: str) -> Callable[[Job], Any]:
    def strike(job: Job) -> None:
        job.wait_for(lambda: job.pids(first) and job.pids(second), f"{first} and {second}")
        for pid in (job.pids(first)[0], job.pids(second)[0]):
            os.kill(pid, signal.SIGKILL)

    return strike


def five_times(part: str) -> Callable[[Job], Any]:
    """Each time it is back and the run has made steps again: one more checkpoint, where the run went back to one."""

    def strike(job: Job) -> None:
        for _ in range(5):
            at, last = job.steps(), job.kill(part)
            job.wait_for(lambda: job.pids(part) not in ([], [last]), f"another {part}")  # noqa: B023
            job.wait_for(lambda: job.steps() > at + 2 * EVERY or job.exists("summary.json"), "steps after a kill")  # noqa: B023

    return strike


def driver_killed(job: Job) -> None:
    job.family()
    os.kill(job.process.pid, signal.SIGKILL)


def asked_to_end(job: Job) -> None:
    job.family()
    job.process.send_signal(signal.SIGTERM)


def busy_node_killed(job: Job) -> None:
    """The raylet of the node that has the engine, and with it all that it started."""
    job.wait_for(lambda: job.pids("engine"), "the engine")
    engine = job.pids("engine")[0]
    for one in psutil.Process(engine).parents():
        if TITLES["raylet"] in " ".join(one.cmdline()):
            one.kill()
            return
    raise AssertionError("the engine has no raylet above it")


# --- disks, services, files ---------------------------------------------------------------------------------------


def disk_full(job: Job) -> None:
    job.around.tools["disk"].fill()


def disk_emptied(around: Around, job: Job) -> None:
    around.tools["disk"].empty()


def store(only: str, seconds: float | None) -> Callable[[Job], Any]:
    """All requests fail in one way, for some seconds or until the fault is mended."""

    def strike(job: Job) -> None:
        proxy = job.around.tools["proxy"]
        proxy.only, proxy.share = only, 1.0
        if seconds is not None:
            time.sleep(seconds)
            proxy.share = 0.0

    return strike


def slow(job: Job) -> None:
    job.around.tools["proxy"].delay_s = 1.0


def answered_again(around: Around, job: Job) -> None:
    around.tools["proxy"].share = around.tools["proxy"].delay_s = 0.0


def mlflow_killed(job: Job) -> None:
    job.around.tools["server"].kill()


def mlflow_started(around: Around, job: Job) -> None:
    around.tools["server"].start()


def nothing_done(job: Job) -> None:
    """What the job runs in is the fault."""


@contextlib.contextmanager
def policy_with_nan(folder: Path, needs: Needs) -> Iterator[Around]:
    import torch
    from safetensors.torch import load_file, save_file

    with surroundings.copied_policy(folder, needs) as around:
        file = around.tools["policy"] / "model.safetensors"
        around.tools["good"] = file.read_bytes()
        tensors = load_file(file)
        next(iter(tensors.values())).view(-1)[7] = torch.nan
        save_file(tensors, file, metadata={"format": "pt"})
        yield around


def policy_restored(around: Around, job: Job) -> None:
    (around.tools["policy"] / "model.safetensors").write_bytes(around.tools["good"])


def other_weights(name: str) -> Callable[[Job], Any]:
    """Weights of another policy lie where an engine that comes back looks for its own. name: whose file."""

    def strike(job: Job) -> None:
        from introspect_ray.policy import BUNDLED

        folder = job.around.tools.get("policy") or Path(job.out) / "policy"
        file = Path(folder) / "model.safetensors"
        job.around.tools.setdefault("good", file.read_bytes())
        file.write_bytes((Path(BUNDLED[name]) / "model.safetensors").read_bytes())
        job.kill("engine")

    return strike


def cut_policy(job: Job) -> None:
    file = Path(job.out) / "policy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    job.kill("engine")


def flipped(file: Path, seed: int = 0) -> None:
    _, damaged = next(flips(file.read_bytes(), 1, seed))
    file.write_bytes(damaged)


def checkpoint_flipped(job: Job) -> None:
    """The driver dies, and a bit of its newest checkpoint flips. The one before it is whole."""
    job.wait_for(lambda: job.steps() > 2 * EVERY + 1, "a second checkpoint")
    driver_killed(job)
    job.end()
    newest = sorted((Path(job.out) / "checkpoints").glob("step-*"))[-1]
    flipped(next(newest.glob("*.distcp")))


def label_part_flipped(job: Job) -> None:
    """While the run goes on, and must go back to a checkpoint."""
    job.wait_for(lambda: list((Path(job.out) / "labels").glob("*.parquet")), "a part of the label table")
    part = sorted((Path(job.out) / "labels").glob("*.parquet"))[0]
    job.around.tools["part"] = part, part.read_bytes()
    flipped(part)
    job.kill("training worker")


def label_part_restored(around: Around, job: Job) -> None:
    path, content = around.tools["part"]
    path.write_bytes(content)


@contextlib.contextmanager
def damaged_caches(folder: Path, needs: Needs) -> Iterator[Around]:
    """The caches of an undisturbed run, one bit of each file flipped."""
    cache = folder / "cache"
    shutil.copytree(needs.undisturbed("train") / "cache", cache)
    for number, file in enumerate(sorted(one for one in cache.rglob("*") if one.is_file())):
        if file.stat().st_size:
            flipped(file, number)
    yield Around([f"cache_dir={cache}"])


def second_writer(name: str) -> Callable[[Job], Any]:
    """Another job asks for the same folder, and is refused in one line."""

    def strike(job: Job) -> None:
        words = [*job.words, f"output_dir={job.out}", "--resume"]
        done = subprocess.run([sys.executable, f"jobs/{name}.py", *words], cwd=REPO, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.strip().count("\n") == 0, done.stderr
        assert f"(process {job.process.pid} " in done.stderr, done.stderr

    return strike
