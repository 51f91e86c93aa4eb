"""An engine that shares its GPU gives the memory back between labelling turns, and answers as before. Needs vLLM."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Weights and KV cache of a tiny policy: all but the CUDA context and vLLM's workspaces.
REST = """
import sys
sys.path.insert(0, "tests")
import torch
from learner_helpers import organism_cases
from introspect_ray.config import RolloutConfig
from introspect_ray.engines import make_engine
from introspect_ray.policy import BUNDLED
rollout = RolloutConfig(engine="vllm", num_gpus=0.3, weight_transfer="ipc")
engine, cases = make_engine(rollout, str(BUNDLED["organism"]), max_model_len=192), organism_cases(24)
def used():
    free, total = torch.cuda.mem_get_info()
    return (total - free) / total
before, awake = engine.label_pairs(cases), used()
engine.rest()
engine.rest()
resting = used()
assert engine.label_pairs(cases) == before, "other answers after a rest"
assert abs(used() - awake) < 0.02
print(awake, resting)
"""


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_a_resting_engine_leaves_its_memory_and_answers_as_before():
    """vLLM takes 0.3 of the memory, most of it KV cache; resting it keeps less than 0.1."""
    import torch

    if importlib.util.find_spec("vllm") is None or not torch.cuda.is_available():
        pytest.skip("needs vllm and a CUDA device")
    child = subprocess.run([sys.executable, "-c", REST], cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert child.returncode == 0, child.stderr[-6000:]
    awake, resting = map(float, child.stdout.split()[-2:])
    assert awake > 0.25 and resting < awake - 0.2
