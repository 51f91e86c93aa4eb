"""The main job on the bundled organism: λ = 0 and λ = 1 with fixed labels, then online relabelling at ν = 1.

Writes runs/quickstart/{sweep.json,sweep.png}, online/summary.json and an MLflow store.
"""

from __future__ import annotations

from typing import Any

from introspect_ray.cli import Arguments, main


def job(args: Arguments) -> None:
    from dataclasses import replace

    from introspect_ray.runs.jobs import print_summaries, sweep_job
    from tune_spaces.kl_weight import SPACE

    online: list[dict[str, Any]] = []

    def after(cfg: Any, setup: Any, tracking: tuple[str | None, str | None]) -> None:
        online.append(_online_run(cfg, setup, tracking))

    space = replace(SPACE, values=(0.0, 1.0))
    if sweep_job(args, space, after=after, output_dir="runs/quickstart") is not None:
        print("online relabelling at every gradient step (ν = 1, λ = 1):")
        print_summaries(online, "kl_weight")


def _online_run(cfg: Any, setup: Any, tracking: tuple[str | None, str | None]) -> dict[str, Any]:
    """One run with labels rebuilt from the current policy at every step, on the sweep's engines."""
    from introspect_ray.config import override
    from introspect_ray.runs.driver import train_once
    from introspect_ray.runs.results import open_tracker

    root = cfg.output_dir.rstrip("/")
    run = override(
        cfg,
        {
            "supervision.rule": "online",
            "supervision.agreement": 1.0,
            "kl_weight": 1.0,
            "output_dir": f"{root}/online",
            "cache_dir": cfg.cache_dir or f"{root}/cache",
        },
    )
    with open_tracker(run, "online", *tracking) as tracker:
        return train_once(run, setup, tracker, run_name="online")


if __name__ == "__main__":
    main(job, __doc__)
