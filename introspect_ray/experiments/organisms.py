"""Builds the organisms that experiments need, on first use: several at once, a process on one core each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from introspect_ray.errors import UserError
from introspect_ray.experiments.plan import organism_folder
from introspect_ray.experiments.protocol import File, Organism, Study

AT_ONCE = 2
SECONDS = 170.0  # of one organism on one core, for estimates
_POLL_S = 0.5
_MARKER = "built.txt"
_SECOND = "second_policy"


class _Job(NamedTuple):
    organism: Organism
    process: subprocess.Popen[bytes]
    began: float


def missing_organisms(organisms: Iterable[Organism], studies: Iterable[Study], out: Path) -> list[Organism]:
    """Those that are not built, or without the second policy that a study asks for (File("second_policy"))."""
    seconds = {study.organism for study in studies if _uses_second(study)}
    return [one for one in organisms if not _built(organism_folder(out, one), one in seconds)]


def build_organisms(
    organisms: Iterable[Organism], studies: Iterable[Study], out: Path, say: Callable[[str], None]
) -> None:
    """Build what `missing_organisms` finds into OUT/organisms/<name>; a folder appears when it is complete.

    Raises UserError with the last line of the builder that failed first; what the others built stays.
    """
    studies = list(studies)
    seconds = {study.organism for study in studies if _uses_second(study)}
    waiting = missing_organisms(organisms, studies, out)
    total, running, done = len(waiting), list[_Job](), 0
    at_once = max(1, min(AT_ONCE, os.cpu_count() or 1))
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_start(waiting.pop(0), out, seconds))
            time.sleep(_POLL_S)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                _finish(job, out)
                done += 1
                say(f"organism {done} of {total}: {job.organism.name} in {time.monotonic() - job.began:.0f} s")
    finally:
        for job in running:  # of an error or an interrupt
            job.process.terminate()
            job.process.wait()


def _uses_second(study: Study) -> bool:
    return File(_SECOND) in [*study.base.values(), *(value for point in study.points for value in point.values())]


def _built(folder: Path, second: bool) -> bool:
    return (folder / _MARKER).is_file() and (not second or (folder / _SECOND).is_dir())


def _start(organism: Organism, out: Path, seconds: set[Organism | None]) -> _Job:
    folder = organism_folder(out, organism)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "introspect_ray.organism.build", "--out", str(part)]
    for name, value in organism._asdict().items():
        command += [f"--{name}", str(value)]
    command += [] if organism in seconds else ["--no-second"]
    with part.with_suffix(".log").open("wb") as log:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env)
    return _Job(organism, process, time.monotonic())


def _finish(job: _Job, out: Path) -> None:
    folder = organism_folder(out, job.organism)
    part = folder.with_name(f"{folder.name}.part")
    log = part.with_suffix(".log")
    if job.process.returncode != 0:
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"building organism {job.organism.name} failed (exit {job.process.returncode}): {last}; see {log}"
        )
    (part / _MARKER).write_text("\n".join(f"{name}={value}" for name, value in job.organism._asdict().items()) + "\n")
    if folder.exists():  # built without its second policy
        shutil.rmtree(folder)
    part.rename(folder)
    log.unlink()
