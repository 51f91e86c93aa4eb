"""One Ray, one vLLM engine and one set of M0 labels for all tests in this folder: starting them takes half a minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from introspect_ray.config import RunConfig, load_config, override

CASES = {"task.train_cases": 96, "task.test_cases": 64, "eval.dev_fraction": 0}  # tests compare all held-out cases


@dataclass
class Live:
    """Engines in place; `train` runs one training on them and returns its summary and step rows."""

    cfg: RunConfig
    setup: Any
    root: Path
    count: int = 0

    def train(
        self, on_row: Callable[[dict], None] | None = None, out: Path | None = None, **flat: Any
    ) -> tuple[dict, list[dict], Path]:
        from introspect_ray.runs.driver import train_once
        from introspect_ray.runs.results import open_tracker

        self.count += 1
        name = f"run{self.count}"
        out = out or self.root / name
        keys = {key.replace("__", "."): value for key, value in flat.items()}
        rows: list[dict] = []

        def keep(row: dict) -> None:
            rows.append(row)
            if on_row:
                on_row(row)

        cfg = override(self.cfg, {**keys, "output_dir": str(out)})
        with open_tracker(cfg, name, None) as tracker:
            summary = train_once(cfg, self.setup, tracker, run_name=name, on_row=keep)
        return summary, rows, out


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    import ray

    from introspect_ray.runs.cluster import connect
    from introspect_ray.runs.preflight import prepare
    from introspect_ray.runs.setup import set_up

    root = tmp_path_factory.mktemp("live")
    flat = {**CASES, "steps": 4, "batch_size": 24, "output_dir": str(root / "base"), "cache_dir": str(root / "cache")}
    flat["tracking.backend"] = "none"
    cfg = load_config(None, {**flat, "train.num_workers": 2})
    connect(cfg)  # sized for two training workers
    try:
        cfg = override(cfg, {"train.num_workers": 1})
        yield Live(cfg, set_up(cfg, prepare(cfg)), root)
    finally:
        ray.shutdown()
