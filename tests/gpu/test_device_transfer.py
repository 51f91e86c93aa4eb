"""Weights from the trainer's GPU to the engine's by vLLM's own transports, in a whole run. Needs Ray and vLLM."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 3


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "gpus", "share"), [("nccl", 2, 1), ("ipc", 1, 0.4), ("object_store", 2, 1)])
def test_an_online_run_uses_the_trainers_weights(kind, gpus, share, tmp_path):
    """The run verifies each of its four deliveries by fingerprints and probe.

    It also compares the label logprobs of engine and trainer on the weights of each step (alarms.engine_gap).
    """
    import torch

    if missing := [name for name in ("ray", "vllm") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {' and '.join(missing)}")

    if torch.cuda.device_count() < gpus:
        pytest.skip(f"needs {gpus} CUDA devices")
    flat = {
        "output_dir": tmp_path,
        "steps": STEPS,
        "batch_size": 8,
        "task.train_cases": 32,
        "task.test_cases": 16,
        "supervision.rule": "online",
        "train.use_gpu": "true",
        "rollout.num_gpus": share,
        "rollout.gpu_memory_utilization": 0.3,
        "rollout.weight_transfer": kind,
        "tracking.backend": "jsonl",
    }
    command = [sys.executable, "-m", "jobs.train", *(f"{key}={value}" for key, value in flat.items())]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880)
    assert child.returncode == 0, f"{child.stdout[-3000:]}\n{child.stderr[-6000:]}"
    assert json.loads((tmp_path / "summary.json").read_text())
