"""Who may import what (DESIGN, layout): checked on the syntax tree, so imports inside functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("introspect_ray", "jobs", "tune_spaces") for path in (ROOT / folder).rglob("*.py")]
ALLOWED = {
    "ray": ("introspect_ray/actors/", "introspect_ray/runs/", "jobs/", "tune_spaces/"),
    "vllm": (
        "introspect_ray/engines/vllm_engine.py",
        "introspect_ray/engines/vllm_receiver.py",
        "introspect_ray/engines/vllm_sender.py",
    ),  # the receiver runs in vLLM
    "mlflow": ("introspect_ray/storage/tracking_mlflow.py",),
    "boto3": ("introspect_ray/storage/s3.py",),
}
LIGHT = ["config", "records", "cli", "storage.local", "labels.store", "storage.tracking", "labels.audit"]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", ALLOWED)
def test_only_its_home_imports(package: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if any(name == package or name.startswith(f"{package}.") for name in imported(path))
    }
    assert users, f"nothing imports {package} any more: drop the rule"
    assert [user for user in sorted(users) if not user.startswith(ALLOWED[package])] == []


def test_import_contracts() -> None:
    """Imports point one way: the contracts in pyproject.toml."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_runs_before_an_error_message_imports_nothing_heavy() -> None:
    modules = ", ".join(f"introspect_ray.{name}" for name in LIGHT)
    heavy = ("torch", "ray", "vllm", "transformers", "mlflow", "boto3")
    code = f"import sys, {modules}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_bundled_tokenizer_is_autotokenizers_choice_without_torch() -> None:
    """--dry-run reads it; AutoTokenizer's own import takes seconds."""
    code = (
        "import sys; from introspect_ray.policy import load_tokenizer, local_policy\n"
        "path = local_policy('organism'); ours = load_tokenizer(path); print('torch' in sys.modules)\n"
        "from transformers import AutoTokenizer; theirs = AutoTokenizer.from_pretrained(path)\n"
        "print(type(ours) is type(theirs), ours.get_vocab() == theirs.get_vocab())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]
