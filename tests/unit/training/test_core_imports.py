"""The training core needs no library but torch, transformers, peft, numpy, safetensors and pydantic, nor do the tests
and the benchmark that are for a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import importlib, pathlib, pkgutil, runpy, sys

for name in ("ray", "vllm", "pyarrow", "mlflow", "boto3", "matplotlib"):
    sys.modules[name] = None  # as if it were not installed
imported = []
for room in ("policy", "engines", "training", "patching"):
    package = importlib.import_module(f"introspect_ray.{room}")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if ".vllm_" not in module.name:
            importlib.import_module(module.name)
            imported.append(module.name)
import learner_helpers, ranks  # the helpers of the tests
for file in sorted(pathlib.Path("tests/gpu").glob("*.py")):
    runpy.run_path(str(file))
import benchmarks.gpu.__main__, benchmarks.gpu.engines
print(len(imported))
"""


def test_the_training_core_imports_without_the_other_libraries() -> None:
    """All modules of the four rooms except the vLLM ones, the helpers of their tests, tests/gpu and benchmarks.gpu."""
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{PROGRAM}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
