"""The main job on the bundled organism: λ = 0 and λ = 1 with fixed labels, then online relabelling at ν = 1."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from introspect_ray import signals
from introspect_ray.cli import Arguments
from introspect_ray.config import RunConfig, override
from introspect_ray.runs.jobs import sweep_job
from introspect_ray.runs.printed import print_summaries
from introspect_ray.runs.search_space import PAPER_SWEEPS

if TYPE_CHECKING:
    from introspect_ray.runs.setup import SharedSetup

Tracking = tuple[str | None, str | None]


def quickstart_job(args: Arguments) -> None:
    """Writes runs/quickstart/{sweep.json,sweep.png}, online/summary.json and an MLflow store."""
    online: list[dict[str, Any]] = []

    def after(cfg: RunConfig, setup: SharedSetup, tracking: Tracking) -> None:
        online.append(_online_run(cfg, setup, tracking))

    space = replace(PAPER_SWEEPS["lambda"], values=(0.0, 1.0))
    if sweep_job(args, [space], after=after, output_dir="runs/quickstart") is not None:
        print("online relabelling at every gradient step (ν = 1, λ = 1):")
        print_summaries(online, "kl_weight")


def _online_run(cfg: RunConfig, setup: SharedSetup, tracking: Tracking) -> dict[str, Any]:
    """One run with labels rebuilt from the current policy at every step, on the sweep's engines."""
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
    with open_tracker(run, "online", *tracking) as tracker, signals.gently(setup.status.halt.remote):
        return train_once(run, setup, tracker, run_name="online")
