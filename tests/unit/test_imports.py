"""Who may import what, and what stays out of processes that do not need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import introspect_ray

ROOT = Path(__file__).parents[2]
HEAVY = "torch ray vllm transformers mlflow boto3 matplotlib huggingface_hub sklearn"


def test_import_contracts() -> None:
    """Imports point one way, and libraries have their rooms: the contracts in pyproject.toml.

    They are checked on the syntax tree, so imports inside functions count too.
    """
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("introspect_ray introspect_ray.commands", f"{HEAVY} pydantic yaml numpy pyarrow"),  # --version and --help
        ("config.reference", f"{HEAVY} numpy pyarrow"),  # --help SECTION
        ("records storage.local storage.tracking labels.store labels.audit runs.search_space", HEAVY),
        ("tasks cases.explanations cases.tokenize labels.rules scores", f"{HEAVY} pyarrow"),
        ("engines", HEAVY),  # the driver imports it
        ("runs.sweep runs.trial_slots runs.kept_workers actors.relabeler", "torch vllm mlflow matplotlib transformers"),
    ],
    ids=["help", "keys", "before errors", "pure rooms", "engines", "around a training"],
)
def test_light_imports(modules: str, absent: str) -> None:
    names = [name if name.startswith("introspect_ray") else f"introspect_ray.{name}" for name in modules.split()]
    code = f"import sys, {', '.join(names)}; print(*sorted(set({absent.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_public_name_is_also_a_room() -> None:
    """Importing a module of a room sets the room as an attribute of the package, over a function of that name."""
    rooms = {path.parent.name for path in (ROOT / "introspect_ray").glob("*/__init__.py")}
    assert not rooms & set(introspect_ray.__all__)
    assert all(getattr(introspect_ray, name) for name in introspect_ray.__all__)


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
