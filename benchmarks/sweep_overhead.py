"""What a sweep adds to its trials: seconds per trial over those of the trial's own steps and evaluation.

The main sweep's job runs three values of λ on the organism, with Ray Tune, one Ray Train run per trial, real vLLM
engines and MLflow. `parts` are the seconds per trial besides steps and evaluation: Ray Tune, Ray Train's start and end,
making the learner (with its imports), exporting the policy, tracking, and the rest. `separate_over_sweep` compares
three `jobs/train.py` runs of the same trials, one after another, with the whole sweep, both with imports: it shows what
sharing one set of engines, M0's labels and its reference saves.
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

from benchmarks.common import ROOT, child, parser, report, run_main

NAME = "sweep_overhead"
VALUES, STEPS = (0.0, 0.1, 1.0), 300
SMALL = {"steps": 8, "task.train_cases": 64, "task.test_cases": 32}


def settings(small: bool) -> dict[str, Any]:
    return SMALL if small else {"steps": STEPS}


def sweep(folder: str, small: bool) -> dict[str, float]:
    """Run the sweep in this process; seconds of Ray Tune's part, which begins when the engines are up."""
    import ray

    from introspect_ray.config import load_config
    from introspect_ray.runs.cluster import connect
    from introspect_ray.runs.preflight import prepare
    from introspect_ray.runs.results import open_tracker
    from introspect_ray.runs.search_space import grid
    from introspect_ray.runs.setup import set_up
    from introspect_ray.runs.sweep import run_sweep
    from introspect_ray.storage.tracking import tracking_uri
    from tune_spaces.kl_weight import SPACE

    cfg = load_config(None, {**settings(small), "output_dir": folder})
    prepared = prepare(cfg)
    uri = tracking_uri(cfg.tracking, cfg.output_dir)
    connect(cfg)
    try:
        with open_tracker(cfg, "sweep", uri) as parent:
            setup = set_up(cfg, prepared)
            began = time.perf_counter()
            trials = grid(cfg, [SPACE], [VALUES], [cfg.seed])
            run_sweep(cfg, [SPACE], trials, setup, (uri, parent.run_id))
            return {"tune_s": time.perf_counter() - began}
    finally:
        ray.shutdown()


def trial_parts(trial: Path) -> dict[str, float]:
    """Seconds of one finished trial: "steps", "eval", and what else it spent, by part."""
    from mlflow import MlflowClient

    from introspect_ray.runs.results import step_rows
    from introspect_ray.storage import open_store

    store = open_store(str(trial))
    timing, tracking = store.read_json("details.json")["timing_s"], store.read_json("tracking.json")
    run = MlflowClient(tracking["uri"]).get_run(tracking["run_id"]).info
    began, evaluated = ((trial / name).stat().st_mtime for name in ("run.json", "summary.json"))
    return {
        "steps": sum(row["step_s"] for row in step_rows(store)),
        "tracking": began - run.start_time / 1000 + run.end_time / 1000 - evaluated,
        "whole": (run.end_time - run.start_time) / 1000,
        **timing,
    }


def breakdown(trials: list[dict[str, float]], tune_s: float) -> tuple[float, dict[str, float]]:
    """(seconds per trial over those of its steps and evaluation, mean seconds of the rest by part)."""
    mean = {part: statistics.fmean(trial[part] for trial in trials) for part in trials[0]}
    trial_s = tune_s / len(trials)
    whole, own = mean.pop("whole"), mean.pop("steps") + mean.pop("eval")
    parts = {"tune": trial_s - whole, **mean}
    return trial_s / own, {"own": own, **parts, "rest": trial_s - own - sum(parts.values())}


def separate(root: str, small: bool) -> float:
    """Seconds of the same trials as jobs of their own."""
    seconds = 0.0
    for value in VALUES:
        flat = {**settings(small), "kl_weight": value, "output_dir": f"{root}/separate-{value}"}
        command = [sys.executable, "jobs/train.py", *(f"{key}={given}" for key, given in flat.items())]
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        seconds += time.perf_counter() - began
    return seconds


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sweep", metavar="FOLDER", help="run the sweep in this process, and stop")
    args = arguments.parse_args()
    if args.sweep:
        return print(json.dumps(sweep(args.sweep, args.small)))
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        small = ["--small"] if args.small else []
        tune_s = child(["-m", f"benchmarks.{NAME}", "--sweep", f"{root}/sweep", *small])["tune_s"]
        sweep_s = time.perf_counter() - began
        ratio, parts = breakdown([trial_parts(trial) for trial in Path(root, "sweep", "trials").iterdir()], tune_s)
        separate_s = separate(root, args.small)
    print(*(f"{part} {value:.2f} s" for part, value in parts.items()), sep=", ", flush=True)
    over = separate_s / sweep_s
    facts = {"separate_over_sweep": over, "sweep_s": sweep_s, "separate_s": separate_s, "tune_s": tune_s}
    report(NAME, ratio, None, trials=len(VALUES), **facts, parts=parts)


if __name__ == "__main__":
    run_main(main)
