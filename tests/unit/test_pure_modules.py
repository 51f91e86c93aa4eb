"""The pure modules load without the heavy stack: --help and unit tests stay fast, actors stay thin."""

import subprocess
import sys


def test_pure_modules_load_no_heavy_library():
    code = (
        "import sys, introspect_ray.tasks, introspect_ray.cases.explanations, introspect_ray.cases.tokenize\n"
        "import introspect_ray.labels.rules, introspect_ray.scores.metrics\n"
        "import introspect_ray.scores.evaluation, introspect_ray.scores.figures\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'matplotlib', 'mlflow', 'pyarrow', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
