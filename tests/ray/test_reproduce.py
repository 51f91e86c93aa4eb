"""`reproduce` as a user calls it: figure 4 with two values, and a second call that runs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
REPO = Path(__file__).parents[2]
SETTINGS = """
run: {rollout: {engine: transformers}}
kinds: {bundled: {steps: 2, batch_size: 16, task: {train_cases: 64, test_cases: 64}}}
values: {kl_weight: [0.0, 1.0]}
seeds: {sweeps: [0]}
"""


def reproduce(*args: str) -> str:
    command = [sys.executable, "jobs/reproduce.py", *args]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_call_runs_nothing(tmp_path):
    settings, out = tmp_path / "settings.yaml", tmp_path / "out"
    settings.write_text(SETTINGS)
    args = ["fig4", "--settings", str(settings), f"output_dir={out}"]
    assert "2 trainings on 1 set-ups" in reproduce(*args)
    summaries = sorted(out.glob("runs/*/summary.json"))
    times = [file.stat().st_mtime_ns for file in summaries]
    assert len(summaries) == 2
    rows = json.loads((out / "fig4" / "rows.json").read_text())
    assert [row["kl_weight"] for row in rows] == [0.0, 1.0]
    began = time.monotonic()
    said = reproduce(*args)
    print(f"second call {time.monotonic() - began:.1f} s")
    assert "0 runs;" in said and "set-up" not in said
    assert [file.stat().st_mtime_ns for file in summaries] == times
    assert "fig4" in (out / "report.html").read_text()
    assert [call["runs"] for call in json.loads((out / "calls.json").read_text())] == [2, 0]
