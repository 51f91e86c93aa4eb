"""benchmarks.gpu on a CPU, on tiny sizes, with the libraries of the training core alone."""

import json
import subprocess
import sys

import pytest

from benchmarks.gpu import correctness, loops
from benchmarks.gpu.setting import make_setting

BARE = """
import runpy, sys
for name in ("ray", "vllm", "pyarrow", "mlflow", "boto3", "matplotlib", "pandas", "datasets"):
    sys.modules[name] = None  # as if it were not installed
sys.argv[0] = "benchmarks.gpu"
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def test_all_parts_run_with_the_training_cores_libraries_alone(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{BARE}", "--small", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    found = json.loads(out.read_text())
    assert json.loads(done.stdout.splitlines()[-1])["name"] == "gpu"
    assert len(found["correctness"]["variants"]) == len(correctness.CPU)
    assert found["speed"]["ratio"] > 0 and found["speed"]["share"] > 0 and found["compilations"]["shapes"] > 1
    assert "needs" in found["engines"]["left_out"]


def test_another_objective_is_noticed(tmp_path, monkeypatch):
    """λ of 0.9 in the reference: the loss and the gradients of every variant are another's."""
    monkeypatch.setattr(loops, "KL_WEIGHT", 0.9)
    monkeypatch.setattr(correctness, "CPU", {"sdpa": correctness.CPU["sdpa"]})
    found = correctness.measure(make_setting(str(tmp_path), small=True))
    assert not found["ok"] and found["variants"]["sdpa"]["gradients"] == pytest.approx(0.1, rel=1.0)
