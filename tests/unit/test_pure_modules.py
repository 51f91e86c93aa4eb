"""The pure modules load without the heavy stack: --help and unit tests stay fast, actors stay thin."""

import subprocess
import sys


def test_pure_modules_load_no_heavy_library():
    code = (
        "import sys, introspect_ray.tasks, introspect_ray.explanations, introspect_ray.tokenization\n"
        "import introspect_ray.supervision, introspect_ray.metrics, introspect_ray.evaluation, introspect_ray.figures\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'matplotlib', 'mlflow', 'pyarrow', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
