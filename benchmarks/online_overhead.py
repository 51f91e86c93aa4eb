"""What online relabelling costs: seconds per step at lag 1 and lag 0 over those with fixed labels.

The whole system (Ray, a vLLM engine, relabeler, Ray Train) trains the same policy on the same cases on one set of
engines: with fixed labels, then with labels made by the vLLM engine or by the learner itself, at lag 0 and lag 1.
Trainer and engine are pinned to one core each. The numbers are medians over all steps but the first few, for
SmolLM2-135M on real MMLU questions and for the organism. `ratio` is SmolLM2 at lag 1; it and `lag_0` are of the engine
that does better there. On the organism the learner labels: a step is too short to hide a delivery of weights.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from contextlib import suppress
from typing import Any

import psutil

from benchmarks.common import MMLU, child, parser, policy_folder, report, run_main

NAME, GOAL, LAG_0_GOAL, ORGANISM_GOAL = "online_overhead", "<= 1.03", "<= 1.15", "<= 1.3"
ENGINES = ("vllm", "learner")
RUNS: dict[str, dict[str, Any]] = {"fixed": {"supervision.rule": "fixed"}} | {
    f"{engine} lag {lag}": {"supervision.rule": "online", "lag": lag, "rollout.engine": engine}
    for engine in ENGINES
    for lag in (0, 1)
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
    """Ratios to fixed labels and seconds per step of every run, and who waits at lag 1 for the vLLM engine."""
    policy = "organism" if small else policy_folder(small)
    runs = measure(policy, ORGANISM if small else SMOLLM2)
    for name, parts in runs.items():
        print(
            f"{'organism' if small else 'SmolLM2'} {name:13}", *(f"{k} {v:.3f}" for k, v in parts.items()), flush=True
        )
    fixed = runs["fixed"]["step_s"]
    return {
        "ratios": {name: parts["step_s"] / fixed for name, parts in runs.items() if name != "fixed"},
        "seconds": {name: parts["step_s"] for name, parts in runs.items()},
        "lag_1_idle_s": {part: runs["vllm lag 1"][part] for part in PARTS[1:]},
    }


def better(ratios: dict[str, float], lag: int) -> float:
    return min(ratios[f"{engine} lag {lag}"] for engine in ENGINES)


def main() -> None:
    args = parser(__doc__).parse_args()
    if args.small:
        organism = compare(small=True)
        return report(NAME, organism["ratios"]["learner lag 1"], ORGANISM_GOAL, **organism)
    organism = child(["-m", "benchmarks.online_overhead", "--small"])  # a Ray and an engine of its own
    found = compare(small=False)
    also = {
        "lag_0": (better(found["ratios"], 0), LAG_0_GOAL),
        "organism": (organism["ratio"], ORGANISM_GOAL),
    }
    parts = {key: organism[key] for key in ("ratios", "seconds", "lag_1_idle_s")}
    return report(NAME, better(found["ratios"], 1), GOAL, also=also, **found, organism=parts)


if __name__ == "__main__":
    run_main(main)
