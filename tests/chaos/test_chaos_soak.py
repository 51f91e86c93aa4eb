"""Random parts of long runs are killed at random moments, again and again."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.chaos.cells import KINDS, start
from tests.chaos.faults import driver_killed
from tests.chaos.job import PATIENCE_S, Around, Job, differences, result

KILLS = int(os.environ.get("CHAOS_KILLS", "100"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
PARTS = ("engine", "relabeler", "training worker", "training worker", "status board", "driver")
PAUSE_S = 4.0  # at most, of a run that makes steps again
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(KILLS * 60 + 4 * PATIENCE_S)]


@dataclass
class Soak:
    """What came of it. A job that is stopped goes on with --resume, one that ends is followed by another."""

    seed: int
    kills: int = 0
    jobs: int = 0
    survived: int = 0
    resumed: int = 0
    failed: int = 0
    noticed_s: list[float] = field(default_factory=list)
    serving_s: list[float] = field(default_factory=list)
    by_part: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def kill_one(job: Job, soak: Soak, draws: random.Random) -> None:
    """One random part, and the seconds until it is back and until there are steps again."""
    part = draws.choice(PARTS)
    before = [] if part == "driver" else job.pids(part)
    steps, struck, lines = job.steps(), time.monotonic(), len(job.lines)
    if part == "driver":
        driver_killed(job)
    elif before:
        job.kill(part)
    else:
        return
    soak.kills += 1
    soak.by_part[part] = soak.by_part.get(part, 0) + 1
    noticed = False
    while job.process.poll() is None and time.monotonic() < struck + PATIENCE_S:
        if not noticed and (len(job.lines) > lines or (before and set(job.pids(part)) - set(before))):
            noticed = True
            soak.noticed_s.append(time.monotonic() - struck)
        if job.steps() > steps + 3 or job.exists("summary.json"):
            soak.serving_s.append(time.monotonic() - struck)
            soak.survived += 1
            return
        time.sleep(0.1)


def soak_job(folder: Path, soak: Soak, draws: random.Random) -> None:
    """One job to its end, through all its stops. Raises AssertionError for one that does not go on."""
    around, more = Around(), ()
    while True:
        job = start("long", folder, around, *more)
        try:
            while job.process.poll() is None and soak.kills < KILLS:
                time.sleep(draws.uniform(0, PAUSE_S))
                if job.process.poll() is None:
                    kill_one(job, soak, draws)
            code = job.end()
        finally:
            if job.process.poll() is None:
                job.abandon()
        left = job.left()
        assert not left, f"processes are left: {left}"
        if code == 0:
            return
        text = job.log.read_text(errors="replace")
        assert "Traceback" not in text and "Stack trace" not in text, job.tail()
        assert code == -9 or job.lines[-1].startswith("stopped: "), job.tail()
        soak.resumed += 1
        more = ("--resume",)


def test_random_kills_change_no_bit(tmp_path, runs, report):
    expected, draws = runs("long")[1], random.Random(SEED)
    soak, began = Soak(SEED), time.monotonic()
    try:
        while soak.kills < KILLS:
            soak.jobs += 1
            soak_job(tmp_path / f"job{soak.jobs}", soak, draws)
            found = result(str(tmp_path / f"job{soak.jobs}" / "run"), KINDS["long"][2])
            assert not differences(found, expected)
    except BaseException:
        soak.failed += 1
        raise
    finally:
        soak.seconds = time.monotonic() - began
        report.add(f"soak {SEED}", vars(soak))
        print(vars(soak))
