"""The training core needs no library but torch, transformers, peft, numpy, safetensors and pydantic."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys

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
print(len(imported))
"""


def test_the_training_core_imports_without_the_other_libraries() -> None:
    """All modules of the four rooms except the vLLM ones, and the helpers of their tests."""
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{PROGRAM}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
