"""Four trials of a sweep one at a time and two at once, and the training of one of them alone, in one run.

`ratio` is the overhead of the sweep that runs one trial at a time: its wall time over that of four trainings and one
set-up, as the training alone has them. `two_over_one` is the wall time of the sweep with two trials at once over that
with one. Wall times are of whole processes, with imports; the summaries of both sweeps must be equal but for their
times.

What bounds two at once: `serial_s` are the seconds that no trial shares with another (imports, engines, M0's labels
and explanations, the figure). `least_over_one` is what two_over_one would be if they stayed and the trials' seconds
halved. `stretch` is how much longer a trial takes beside another one than alone: 1 where each has cores of its own, 2
where they share what one of them fills.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, parser, report, run_main

NAME = "sweep_scaling"
VALUES, STEPS = (0.0, 0.1, 1.0, 10.0), 300
SMALL = {"steps": 8, "task.train_cases": 64, "task.test_cases": 32}


def settings(small: bool) -> dict[str, Any]:
    return SMALL if small else {"steps": STEPS}


def job(name: str, flat: dict[str, Any]) -> tuple[float, str]:
    """(seconds, stdout) of a job as a process of its own."""
    command = [sys.executable, f"jobs/{name}.py", *(f"{key}={value}" for key, value in flat.items())]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-2000:]}")
    return seconds, done.stdout


def sweep(folder: str, at_once: int, small: bool) -> float:
    """Seconds of the sweep over four values."""
    flat = {**settings(small), "kl_weight": list(VALUES), "output_dir": folder, "sweep.trials_at_once": at_once}
    seconds, said = job("sweep_lambda", flat)
    if at_once > 1 and f"up to {at_once} of {len(VALUES)} at once" not in said:
        raise RuntimeError(f"the sweep ran one trial at a time: {said[-1000:]}")
    return seconds


def rows(folder: str) -> list[dict[str, Any]]:
    """The summaries of a sweep."""
    found: list[dict[str, Any]] = json.loads(Path(folder, "sweep.json").read_text())["rows"]
    return found


def without_times(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key != "timing_s"} for one in summaries]


def span(run: Path) -> float:
    """Seconds from the start of a training to its summary: between the files that it writes first and last."""
    return (run / "summary.json").stat().st_mtime - (run / "run.json").stat().st_mtime


def main() -> None:
    args = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as root:
        one, two, alone = (f"{root}/{name}" for name in ("one", "two", "alone"))
        one_s, two_s = sweep(one, 1, args.small), sweep(two, 2, args.small)
        train_s, _ = job("train", {**settings(args.small), "kl_weight": VALUES[-2], "output_dir": alone})
        if without_times(rows(one)) != without_times(rows(two)):
            sys.exit("the summaries of two trials at once differ from those of one at a time")
        in_turn, beside = ([span(trial) for trial in Path(folder, "trials").iterdir()] for folder in (one, two))
        training_s = span(Path(alone))
    set_up_s, serial_s = train_s - training_s, one_s - sum(in_turn)
    report(
        NAME,
        one_s / (len(VALUES) * training_s + set_up_s),
        "<= 1.1",
        trials=len(VALUES),
        two_over_one=two_s / one_s,
        least_over_one=(serial_s + sum(in_turn) / 2) / one_s,
        stretch=statistics.fmean(beside) / statistics.fmean(in_turn),
        one_at_a_time_s=one_s,
        two_at_once_s=two_s,
        serial_s=serial_s,
        training_s=training_s,
        set_up_s=set_up_s,
    )


if __name__ == "__main__":
    run_main(main)
