"""Ray Tune over one swept key and seeds: one tracked parent run, a child a trial, engines reused between trials."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from introspect_ray.config import RunConfig, override
from introspect_ray.distributed.driver import Base, train_once, untrained_scores
from introspect_ray.errors import UserError
from introspect_ray.figures import sweep_figure
from introspect_ray.results import open_tracker
from introspect_ray.storage import Store, open_store


def gap(summary: dict[str, Any]) -> float:
    """Self - Orig Explanation EM: the size of introspective coupling (paper §2.3)."""
    return summary["explanation"]["self"]["em"] - summary["explanation"]["orig"]["em"]


@dataclass(frozen=True)
class Space:
    """A one-key sweep: the dotted config key, its default values, what it fixes besides, and the trial's score."""

    key: str
    values: tuple[Any, ...]
    fixed: dict[str, Any]
    objective: Callable[[dict[str, Any]], float] = gap

    @property
    def leaf(self) -> str:
        return self.key.rsplit(".", 1)[-1]

    def param_space(self, values: Sequence[Any], seeds: Sequence[int]) -> dict[str, Any]:
        return {"value": tune.grid_search(list(values)), "seed": tune.grid_search(list(seeds))}


def split_overrides(space: Space, overrides: dict[str, Any]) -> tuple[list[Any], list[int], dict[str, Any]]:
    """(values of the swept key, seeds, the other overrides). Raises UserError for empty or repeated values."""
    clash = {key: overrides[key] for key, value in space.fixed.items() if overrides.get(key, value) != value}
    if clash:
        raise UserError(f"{clash} does not go with a sweep over {space.key}, which needs {space.fixed}: leave it out")
    rest = {**overrides, **space.fixed}
    values, seeds = rest.pop(space.key, list(space.values)), rest.pop("seeds", [rest.pop("seed", 0)])
    values, seeds = (v if isinstance(v, list) else [v] for v in (values, seeds))
    for name, given in ((space.key, values), ("seeds", seeds)):
        if not given or len({_shown(one) for one in given}) < len(given):
            raise UserError(f"{name}={given}: a sweep needs at least one value and each only once, e.g. {name}=[0,1]")
    return values, seeds, rest


def _shown(value: Any) -> str:
    """A value as it stands in a folder's name: 1 and 1.0 are one trial."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def trial_config(cfg: RunConfig, space: Space, value: Any, seed: int) -> RunConfig:
    """The run of one trial: the base config with the swept key, the seed and a folder of its own."""
    root = cfg.output_dir.rstrip("/")
    folder = f"{root}/trials/{space.leaf}={_shown(value)},seed={seed}"
    return override(
        cfg, {space.key: value, "seed": seed, "output_dir": folder, "cache_dir": cfg.cache_dir or f"{root}/cache"}
    )


def run_sweep(
    cfg: RunConfig,
    space: Space,
    values: Sequence[Any],
    seeds: Sequence[int],
    base: Base,
    tracking: tuple[str | None, str | None],
) -> list[dict[str, Any]]:
    """Run all trials that have no summary yet; write sweep.json and sweep.png; return the summaries.

    `tracking` is (MLflow URI, parent run id). Raises RuntimeError naming trials that failed, after
    writing what succeeded.
    """

    def trial(params: dict[str, Any]) -> None:
        run = trial_config(cfg, space, params["value"], params["seed"])
        store = open_store(run.output_dir)
        if not store.exists("summary.json"):
            name = run.output_dir.rsplit("/", 1)[-1]
            with open_tracker(run, name, *tracking) as tracker:
                train_once(run, base, tracker, run_name=name)
        out = {space.leaf: params["value"], **store.read_json("summary.json")}
        tune.report({"objective": space.objective(out), "summary": out})

    with tempfile.TemporaryDirectory() as scratch:
        grid = tune.Tuner(
            tune.with_resources(trial, {"cpu": 0, "memory": 1}),
            param_space=space.param_space(values, seeds),
            # One process for all trials: starting one and its imports take longer than a short trial's evaluation.
            tune_config=tune.TuneConfig(max_concurrent_trials=1, metric="objective", mode="max", reuse_actors=True),
            run_config=tune.RunConfig(name="tune", storage_path=scratch, verbose=0),
        ).fit()
    done = [result.metrics["summary"] for result in grid if result.error is None]
    done.sort(key=lambda s: (s[space.leaf], s["seed"]))
    store = open_store(cfg.output_dir)
    if done:
        store.write_json("sweep.json", done)
        _draw(done, space.leaf, untrained_scores(base)["explanation"]["orig"]["em"], store)
    failed = [str(result.error).strip().splitlines()[-1] for result in grid if result.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(grid)} trials failed, the first with: {failed[0]}")
    return done


def _draw(summaries: list[dict[str, Any]], key: str, untrained: float, store: Store) -> None:
    with tempfile.TemporaryDirectory() as folder:
        figure = Path(folder, "sweep.png")
        sweep_figure(summaries, key, figure, values=[summary[key] for summary in summaries], untrained=untrained)
        store.write_bytes("sweep.png", figure.read_bytes())
