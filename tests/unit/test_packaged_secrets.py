"""Canaries: files that hold secrets are in no package that leaves the machine, be it Ray's of the working directory
(`ray job submit --working-dir .`) or Docker's build context."""

from __future__ import annotations

import re
import subprocess
import zipfile
from fnmatch import translate
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CANARY = "canary-9f86d0"
SECRETS = [
    ".env",
    ".env.local",
    "cluster/.env",
    "jobs/.netrc",
    ".pgpass",
    ".my.cnf",
    ".aws/credentials",
    "cluster/.aws/config",
    ".ssh/id_ed25519",
    "cluster/id_rsa",
    "cluster/server.pem",
    "introspect_ray/tls.key",
    "cluster/gcp-credentials.json",
    "secrets/token.txt",
    "cluster/secrets.yaml",
    "hf_token",
    ".huggingface/token",
    ".git/config",
    ".kube/config",
    "cluster/kubeconfig",
]
SOURCES = ["jobs/train.py", "cluster/h100.yaml", "introspect_ray/cases/label_tokens.py", "pyproject.toml"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder of our ignore files, some sources and many canaries."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in (".gitignore", ".dockerignore"):
        (folder / name).write_text((ROOT / name).read_text())
    for name, text in [*((name, CANARY) for name in SECRETS), *((name, "source") for name in SOURCES)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_ray_packages_no_secret_with_the_working_directory(checkout: Path, tmp_path: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    usual = get_runtime_env_default_excludes()  # as `ray job submit` does (ray/_private/runtime_env/working_dir.py)
    create_package(str(checkout), tmp_path / "package.zip", include_gitignore=True, excludes=usual)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
        leaked = sorted(name for name in names if CANARY in package.read(name).decode())
    assert leaked == [] and set(SOURCES) <= names


def _kept(name: str, lines: list[str]) -> bool:
    """Whether Docker sends a file, by its rule: the last pattern that matches it or a folder above it decides."""
    parts = name.split("/")
    paths = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    kept = True
    for line in lines:
        pattern = line.removeprefix("!")
        forms = [pattern, pattern.removeprefix("**/")] if pattern.startswith("**/") else [pattern]
        if any(re.fullmatch(translate(form), path) for form in forms for path in paths):
            kept = line.startswith("!")
    return kept


def test_docker_sends_no_secret_to_the_build(checkout: Path) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert [name for name in SECRETS if _kept(name, lines)] == []
    assert all(_kept(name, lines) for name in SOURCES)


def test_no_tracked_file_is_ignored_by_mistake() -> None:
    """The patterns are wide: what is under version control must still be packaged."""
    ignored = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if ignored.returncode:
        pytest.skip("no checkout of git")
    assert ignored.stdout == ""
