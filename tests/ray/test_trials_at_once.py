"""Several trials of a sweep at once, on places of their own, end where the same trials one after another do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from introspect_ray.actors.status import start_board
from introspect_ray.config import override
from introspect_ray.runs.kept_workers import keeping
from introspect_ray.runs.sweep import run_trials

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
REPO = Path(__file__).parents[2]
TRIAL = "ray::ImplicitFunc"  # the process in which Ray Tune runs a trial


VALUES = (0.0, 1.0, 5.0)


def sweep(live: Any, root: Path, at_once: int, values: Sequence[float] = VALUES, **flat: Any) -> list[dict]:
    """Some values of λ on the live engines; their summaries without what depends on time and place."""
    keys = {key.replace("__", "."): value for key, value in flat.items()}
    runs = [
        override(
            live.cfg,
            {**keys, "kl_weight": value, "output_dir": str(root / f"{value:g}"), "sweep.trials_at_once": at_once},
        )
        for value in values
    ]
    setup = replace(live.setup, status=start_board({}))  # runs of one name on one board would read each other's rows
    rows, errors = run_trials(runs, setup, (None, None))
    assert errors == []
    return [{key: value for key, value in (row or {}).items() if key != "timing_s"} for row in rows]


def policies(root: Path, values: Sequence[float] = VALUES) -> list[bytes]:
    return [(root / f"{value:g}" / "policy" / "model.safetensors").read_bytes() for value in values]


@pytest.mark.parametrize("rule", ["fixed", pytest.param("online", marks=pytest.mark.slow)])
def test_two_at_once_end_at_the_bits_of_one_after_another(live, tmp_path, rule, capfd):
    """fixed: they score in turns on the engines of the set-up. online: the second place has an engine of its own."""
    flat = {"supervision__rule": rule, "supervision__agreement": 0.8}
    one, two = tmp_path / "one", tmp_path / "two"
    alone = sweep(live, one, at_once=1, **flat)
    free = ray.available_resources()["CPU"]
    assert sweep(live, two, at_once=2, **flat) == alone
    assert policies(two) == policies(one)
    _, _, fresh = live.train(kl_weight=5.0, **flat)  # by workers that trained nothing before
    assert (fresh / "policy" / "model.safetensors").read_bytes() == policies(one)[2]
    assert "trials   up to 2 of 3 at once" in capfd.readouterr().out
    began = [(two / value / "run.json").stat().st_mtime for value in ("0", "1", "5")]
    ended = [(two / value / "summary.json").stat().st_mtime for value in ("0", "1", "5")]
    assert max(sorted(began)[:2]) < min(ended)  # two were under way before one was done
    until = time.monotonic() + 30
    while ray.available_resources()["CPU"] != free and time.monotonic() < until:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == free  # the second place was given back


def test_a_run_after_a_sweep_goes_on_with_the_workers_of_a_trial(live, tmp_path):
    """As the online run of quickstart does, to the bits of workers that trained nothing before."""
    flat = {"supervision__rule": "online", "kl_weight": 1.0}
    with keeping(live.setup, live.cfg, True) as kept:
        there = replace(live, setup=replace(kept, status=start_board({})))
        sweep(there, tmp_path / "sweep", at_once=1, values=(0.0,))
        trained = training_workers()
        there.train(out=tmp_path / "after", **flat)
        assert len(trained) == 1 and training_workers() == trained
    _, _, fresh = live.train(**flat)
    policy = "policy/model.safetensors"
    assert (tmp_path / "after" / policy).read_bytes() == (fresh / policy).read_bytes()


def training_workers() -> set[int]:
    """The processes of this Ray in which policies are trained."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::RayTrainWorker" in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


def test_a_trial_whose_process_dies_goes_on(live, tmp_path):
    """Started again by Tune, in the place that it had, it goes on from its last checkpoint: no result is lost."""
    flat: dict[str, Any] = {
        "supervision__rule": "fixed",
        "steps": 30,
        "train__checkpoint_every": 5,
        "values": (0.0, 1.0),
    }
    alone = sweep(live, tmp_path / "alone", at_once=1, **flat)
    root, killed = tmp_path / "killed", []

    def kill_one() -> None:
        while not list(root.glob("*/checkpoints/*")):
            time.sleep(0.05)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if TRIAL in " ".join(child.cmdline()) and not killed:
                    killed.append(child.pid)
                    os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    assert sweep(live, root, at_once=2, **flat) == alone
    assert len(killed) == 1
    assert policies(root, flat["values"]) == policies(tmp_path / "alone", flat["values"])


@pytest.mark.slow
def test_engines_that_are_released_while_a_policy_trains_score_it_as_those_that_stayed(tmp_path):
    out = {}
    for release in (False, True):
        folder = tmp_path / str(release)
        command = ["jobs/train.py", "steps=4", "batch_size=24", "task.train_cases=96", "task.test_cases=64"]
        command += [f"rollout.release={release}", "rollout.engine=transformers", "tracking.backend=jsonl"]
        done = subprocess.run(
            [sys.executable, *command, f"output_dir={folder}"], cwd=REPO, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        summary = json.loads((folder / "summary.json").read_text())
        out[release] = {key: value for key, value in summary.items() if key != "timing_s"}
        out[release]["policy"] = (folder / "policy" / "model.safetensors").read_bytes()
    assert out[True] == out[False]


def interim(root: Path, value: str) -> list[int]:
    """The steps at which a trial was scored while it trained."""
    lines = map(json.loads, (root / value / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "interim.gap.em" in line]


@pytest.mark.parametrize("rule", ["fixed", pytest.param("online", marks=pytest.mark.slow)])
def test_scores_while_a_policy_trains_change_no_bit_of_it(live, tmp_path, rule):
    flat = {"supervision__rule": rule, "steps": 6, "values": (1.0,)}
    plain = sweep(live, tmp_path / "plain", at_once=1, **flat)
    scored = sweep(live, tmp_path / "scored", at_once=1, eval__every=2, eval__dev_fraction=0.2, **flat)
    assert scored == plain
    assert policies(tmp_path / "scored", (1.0,)) == policies(tmp_path / "plain", (1.0,))
    assert interim(tmp_path / "scored", "1") == [2, 4]


@pytest.mark.slow
def test_asha_stops_trials_and_a_resumed_sweep_leaves_them_stopped(live, tmp_path):
    """One at a time the first runs to its end. Its gap stays 0, for it does not learn, and so does the third one's. If
    the second one's falls below at a rung, it is stopped there; else the third is, below the median of both."""
    flat = {
        "eval__every": 10,
        "eval__dev_fraction": 0.2,
        "sweep__scheduler": "asha",
        "steps": 200,
        "sweep__reduction": 2,
    }
    runs = [
        override(
            live.cfg,
            {
                **{key.replace("__", "."): value for key, value in flat.items()},
                "learning_rate": rate,
                "output_dir": str(tmp_path / f"{rate:g}"),
            },
        )
        for rate in (1e-9, 3e-3, 2e-9)
    ]
    rows, errors = run_trials(runs, live.setup, (None, None))
    assert errors == [] and rows[0] is not None and "gap" in rows[0]
    stopped = [run for run, row in zip(runs, rows, strict=True) if row is not None and "stopped" in row]
    assert stopped, rows
    for run in stopped:
        assert not Path(run.output_dir, "summary.json").exists()
        assert json.loads(Path(run.output_dir, "stopped.json").read_text())["steps"] < 200
    assert run_trials(runs, live.setup, (None, None)) == (rows, [])
