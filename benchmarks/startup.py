"""Seconds until a command line answers: `jobs/train.py --help` (0.5 s are allowed) and `--dry-run` (3 s).

The ratio is the larger of the two shares of what is allowed; beside it how often Python's own start (`-c pass`) fits
into each. Fastest of seven runs in turn, files warm: what else the machine does only adds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.common import ROOT, parser, report, run_main

NAME, GOAL = "startup", "<= 1"
ALLOWED = {"help": 0.5, "dry_run": 3.0}
RUNS = 7


def main() -> None:
    args = parser(__doc__).parse_args()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # this checkout, whatever is installed
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "pass": ["-c", "pass"],
            "help": ["jobs/train.py", "--help"],
            "dry_run": ["jobs/train.py", "--dry-run", f"output_dir={folder}/out"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(-1, 1 if args.small else RUNS):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], cwd=ROOT, env=env, check=True, capture_output=True)
                if run >= 0:  # the first only warms the files
                    seconds[name].append(time.perf_counter() - start)
    fastest = {name: min(values) for name, values in seconds.items()}
    for name, value in fastest.items():
        print(f"{name:8} {value:.3f} s (median {statistics.median(seconds[name]):.3f} s)", flush=True)
    report(
        NAME,
        max(fastest[name] / allowed for name, allowed in ALLOWED.items()),
        GOAL,
        **{f"{name}_s": value for name, value in fastest.items()},
        **{f"{name}_over_pass": fastest[name] / fastest["pass"] for name in ALLOWED},
    )


if __name__ == "__main__":
    run_main(main)
