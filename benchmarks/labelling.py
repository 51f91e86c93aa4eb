"""Labelling at every step (lag 0) by the learner over labelling by the vLLM pool: seconds per step.

Both train the organism on the same 32 cases per step through the whole system (Ray Train, relabeler, label store), with
the same engines. The cost of the labels is what a step takes beyond the training itself. For the pool that is to
gather, send and check the weights, the rollouts of the engine, and the wait for them. For the learner it is a forward
pass and the wait for the relabeler. Run as `python -m benchmarks.labelling [--small]`; the last line is a JSON object.
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

from benchmarks.common import parser, report, run_main
from introspect_ray.config import RunConfig, load_config, override
from introspect_ray.labels.store import read_labels
from introspect_ray.runs.cluster import connect
from introspect_ray.runs.driver import train_once
from introspect_ray.runs.preflight import prepare
from introspect_ray.runs.results import open_tracker
from introspect_ray.runs.setup import SharedSetup, set_up

NAME = "labelling"
ENGINES = ("vllm", "learner")
WARM = 3  # steps left out of the medians


def compare(small: bool) -> dict[str, Any]:
    """Train twice on one set of engines, labelled by the pool and by the learner."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        flat = {"output_dir": folder, "supervision.rule": "online", "tracking.backend": "none", "batch_size": 32}
        flat |= {"steps": 8 if small else 120, "task.train_cases": 96 if small else 960, "task.test_cases": 32}
        cfg = load_config(None, flat)
        connect(cfg)
        try:
            setup = set_up(cfg, prepare(cfg))
            runs = {engine: measure(cfg, setup, engine) for engine in ENGINES}
        finally:
            ray.shutdown()
    pool, learner = (runs[engine] for engine in ENGINES)
    same = [a == b for a, b in zip(pool.pop("labels"), learner.pop("labels"), strict=True)]
    return {
        "ratio": learner["labelling_s"] / pool["labelling_s"],
        "steps": cfg.steps,
        "batch_size": cfg.batch_size,
        "same_labels": sum(same) / len(same),
        "pool": pool,
        "learner": learner,
    }


def measure(cfg: RunConfig, setup: SharedSetup, engine: str) -> dict[str, Any]:
    """Train with labels by `engine`: seconds per step, and the label table."""
    cfg = override(cfg, {"rollout.engine": engine, "output_dir": f"{cfg.output_dir}/{engine}"})
    rows: list[dict[str, Any]] = []
    with open_tracker(cfg, engine, None) as tracker:
        summary = train_once(cfg, setup, tracker, run_name=engine, on_row=rows.append)
    steps = [row["step_s"] for row in rows]
    train = summary["timing_s"]["train"]
    return {
        "labelling_s": (sum(steps) - train) / len(steps),
        "training_s": train / len(steps),
        "rollout_s": summary["timing_s"]["rollout"] / len(steps),
        "median_step_s": statistics.median(steps[WARM:]),
        "labels": list(read_labels(f"{cfg.output_dir}/labels")),
    }


def main() -> None:
    report(NAME, goal=None, **compare(parser(__doc__).parse_args().small))


if __name__ == "__main__":
    run_main(main)
