"""Where vLLM with CUDA and Ray are installed: how fast an engine labels, and what a delivery of weights to it costs.

Deliveries are those of whole online runs at lag 0, of the timed policy with the organism's tokenizer and cases: each is
verified by fingerprints and probe, and the engine answers nothing until then. IPC shares one GPU; NCCL and the object
store need a second one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, make_cases
from benchmarks.gpu.setting import Setting
from introspect_ray.config import RolloutConfig
from introspect_ray.engines import make_engine
from introspect_ray.policy import BUNDLED

CASES, STEPS = 512, 12
TRANSFERS = {"ipc": (1, 0.4), "nccl": (2, 1.0), "object_store": (2, 1.0)}  # GPUs, and the engine's share of its own


def measure(setting: Setting) -> dict[str, Any]:
    """{"cases_per_s", "deliveries": {transfer: {"sync_s", "step_s"} or why it was left out}, "ok"}."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BUNDLED["organism"] / name, setting.policy)
    deliveries: dict[str, Any] = {}
    for kind, (gpus, share) in TRANSFERS.items():
        if torch.cuda.device_count() < gpus:
            deliveries[kind] = {"left_out": f"needs {gpus} CUDA devices"}
        else:
            deliveries[kind] = _delivered(setting, kind, share)
    rate = _labelled(setting)
    return {"cases_per_s": rate, "deliveries": deliveries, "ok": all("error" not in row for row in deliveries.values())}


def _labelled(setting: Setting) -> float:
    """Cases per second of an engine that labels x and x∖C of CASES cases, the second time."""
    cases = make_cases(str(BUNDLED["organism"]), True, CASES)
    rollout = RolloutConfig(engine="vllm", num_gpus=1, dtype="bfloat16", gpu_memory_utilization=0.5)
    engine = make_engine(rollout, setting.policy, max_model_len=256)
    size = rollout.bulk_group
    for _ in range(2):
        began = time.perf_counter()
        for start in range(0, len(cases), size):
            engine.label_pairs(cases[start : start + size])
    return len(cases) / (time.perf_counter() - began)


def _delivered(setting: Setting, kind: str, share: float) -> dict[str, Any]:
    """Means of a run, with its first delivery, which opens the connection, and that of the trained policy: seconds of
    a verified delivery, and of an update with its delivery."""
    out = Path(setting.folder, f"run-{kind}")
    flat = {
        "output_dir": out,
        "policy": setting.policy,
        "steps": STEPS,
        "batch_size": 32,
        "task.train_cases": 64,
        "task.test_cases": 16,
        "supervision.rule": "online",
        "train.use_gpu": "true",
        "train.dtype": "bfloat16",
        "rollout.dtype": "bfloat16",
        "rollout.num_gpus": share,
        "rollout.weight_transfer": kind,
        "rollout.gpu_memory_utilization": 0.3,
        "alarms.engine_gap": 0.5,
        "alarms.collapse": "off",
        "tracking.backend": "none",
    }
    command = [sys.executable, "-m", "jobs.train", *(f"{key}={value}" for key, value in flat.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"error": f"exit code {done.returncode}: {done.stderr.strip()[-1500:]}"}
    seconds = json.loads((out / "summary.json").read_text())["timing_s"]
    return {"sync_s": seconds["sync"] / (STEPS + 1), "step_s": (seconds["train"] + seconds["sync"]) / STEPS}
