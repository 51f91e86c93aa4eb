"""The benchmarks still run: they use parts of the system that no job uses in the same way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_benchmark_runs():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--small"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
