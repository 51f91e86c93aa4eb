"""VLLMEngine on real vLLM: each class of vllm_*_checks.py in a process of its own.

One vLLM engine can live in a process, and it leaves the process changed (threads, distributed groups).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE, TRANSFER, CHUNKS = "vllm_engine_checks.py", "vllm_transfer_checks.py", "vllm_chunk_checks.py"
PROBE, EXPLAIN, LORA = "vllm_probe_checks.py", "vllm_explain_checks.py", "vllm_lora_checks.py"


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("file", "scenario", "count"),
    [
        (ENGINE, "TestTied", 13),
        (ENGINE, "TestOrganism", 5),
        (LORA, "TestLora", 5),
        (TRANSFER, "TestTransfer", 4),
        (CHUNKS, "TestChunks", 2),
        (PROBE, "TestProbe", 3),
        (EXPLAIN, "TestExplain", 4),
    ],
)
def test_vllm_engine(file, scenario, count, tmp_path):
    """All `count` tests of the class pass; the child's own report is shown where they do not."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "unit" / "engines")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "VLLM_CACHE_ROOT": str(tmp_path / "vllm")}
    # cold caches and no compiler, as on a user's machine: nothing may need to be compiled
    env |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "CXX": "/bin/false"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"{Path(__file__).with_name(file)}::{scenario}",
    ]
    child = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=190)
    assert child.returncode == 0, f"{child.stdout[-6000:]}\n{child.stderr[-2000:]}"
    assert f"{count} passed" in child.stdout and "skipped" not in child.stdout, child.stdout[-2000:]
