"""What online relabelling costs: seconds per step at lag 1 over those with fixed labels; lag 0 is given beside it.

The whole system (Ray, a vLLM engine, relabeler, Ray Train) trains the same policy on the same cases three times on one
set of engines. Trainer and engine are pinned to one core each. The numbers are medians over all steps but the first
few, for SmolLM2-135M on real MMLU questions and for the organism.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import suppress
from typing import Any

import psutil

from benchmarks.common import MMLU, child, parser, policy_folder, report, run_main

NAME, GOAL = "online_overhead", "<= 1.10"
RUNS = {
    "fixed": {"supervision.rule": "fixed"},
    "lag 0": {"supervision.rule": "online", "lag": 0},
    "lag 1": {"supervision.rule": "online", "lag": 1},
}
CORES = {"ray::RayTrainWorker": 0, "ray::RolloutWorker": 1}
ORGANISM = {"steps": 80, "batch_size": 32}
SMOLLM2 = {
    "task.name": "hint_mmlu",
    "task.path": str(MMLU),
    "task.test_fraction": 0.25,
    "learning_rate": 1e-5,
    "steps": 7,
    "batch_size": 8,
    "rollout.group_size": 8,
    "train.token_budget": 1024,
}
PARTS = ("step_s", "trainer_idle_s", "rollout_idle_s", "relabeler_idle_s")


def pin() -> None:
    """Every thread of our trainer on one core, of our engine on the other; threads started later inherit it."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            title = next(iter(process.cmdline()), "")
            core = next((core for name, core in CORES.items() if title.startswith(name)), None)
            for thread in process.threads() if core is not None else ():
                os.sched_setaffinity(thread.id, {core})


def measure(policy: str, flat: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Medians of PARTS by run, in seconds."""
    import ray

    from introspect_ray.config import load_config, override
    from introspect_ray.runs.cluster import connect
    from introspect_ray.runs.driver import train_once
    from introspect_ray.runs.preflight import prepare
    from introspect_ray.runs.results import open_tracker, step_rows
    from introspect_ray.runs.setup import set_up
    from introspect_ray.storage import open_store

    with tempfile.TemporaryDirectory() as scratch:
        flat = {**flat, "policy": policy, "tracking.backend": "none", "output_dir": f"{scratch}/base"}
        cfg = load_config(None, {**flat, "cache_dir": f"{scratch}/cache"})
        prepared = prepare(cfg)
        connect(cfg)
        try:
            setup = set_up(cfg, prepared)
            found = {}
            for name, more in RUNS.items():
                run = override(cfg, {**more, "output_dir": f"{scratch}/{name}"})
                with open_tracker(run, name, None) as tracker:
                    train_once(run, setup, tracker, run_name=name, on_row=lambda row: pin())
                rows = step_rows(open_store(run.output_dir))
                kept = [row for row in rows if row["step"] >= max(2, cfg.steps // 4)]
                found[name] = {part: statistics.median(row[part] for row in kept) for part in PARTS}
            return found
        finally:
            ray.shutdown()


def compare(small: bool) -> dict[str, Any]:
    policy = "organism" if small else policy_folder(small)
    runs = measure(policy, ORGANISM if small else SMOLLM2)
    for name, parts in runs.items():
        print(f"{'organism' if small else 'SmolLM2'} {name:6}", *(f"{k} {v:.3f}" for k, v in parts.items()), flush=True)
    fixed = runs["fixed"]["step_s"]
    return {
        "ratio": runs["lag 1"]["step_s"] / fixed,
        "ratio_lag_0": runs["lag 0"]["step_s"] / fixed,
        "seconds": {name: parts["step_s"] for name, parts in runs.items()},
        "lag_1_idle_s": {part: runs["lag 1"][part] for part in PARTS[1:]},
    }


def main() -> None:
    args = parser(__doc__).parse_args()
    if args.small:
        return report(NAME, goal=GOAL, **compare(small=True))
    organism = child(["-m", "benchmarks.online_overhead", "--small"])  # a Ray and an engine of its own
    return report(NAME, goal=GOAL, **compare(small=False), organism=organism)


if __name__ == "__main__":
    run_main(main)
