"""The Dockerfile by its linter, and that it copies and installs what the project has."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_it_copies_what_the_build_context_holds() -> None:
    copied = {part for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for part in line.split()}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed and all((ROOT / name).exists() for name in copied)


def test_targets_end_as_a_user_without_rights() -> None:
    stages = re.split(r"^FROM .+ AS ", DOCKERFILE, flags=re.M)[1:]
    targets = {stage.split()[0]: stage for stage in stages}
    assert list(targets)[-1] == "cuda", "the default target"
    for name in ("cpu", "cuda"):
        text = targets[name]
        assert "RUN" not in text[text.index("USER ") :] and "USER root" not in text


def test_both_targets_install_a_lock_as_it_is() -> None:
    assert "--no-deps -r requirements-cuda.lock" in DOCKERFILE and PROJECT["requires-python"].startswith(">=3.11")
    pattern = re.search(r"grep -vE '([^']+)' requirements-cpu.lock", DOCKERFILE)[1]
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "requirements-cpu.lock").read_text(), re.M)
    left_out = {name for name in pins if re.match(pattern, f"{name}==")}
    tools = {Requirement(line).name for line in PROJECT["optional-dependencies"]["dev"]} - {"setuptools"}
    assert tools <= left_out, "CI's tools are not for a cluster"
    needed = {Requirement(line).name for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"])}
    assert left_out & needed == {"torch"}  # from another index


def test_vllm_does_not_compile_a_sampler_at_start_up() -> None:
    """The image has no nvcc on its PATH; vLLM reads this variable."""
    (folder,) = find_spec("vllm").submodule_search_locations  # its import takes seconds
    assert re.search(r"^ +VLLM_USE_FLASHINFER_SAMPLER=0 ", DOCKERFILE, re.M)
    assert '"VLLM_USE_FLASHINFER_SAMPLER"' in Path(folder, "envs.py").read_text()


def test_the_health_check_asks_the_raylet_where_it_answers_without_a_token() -> None:
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    port, path = re.search(r"http://127\.0\.0\.1:(\d+)(/\S+)\"", DOCKERFILE).groups()
    assert int(port) == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT and path in PUBLIC_EXACT_PATHS


def test_a_job_that_is_stopped_has_time_for_its_checkpoint() -> None:
    """Ray's supervisor of jobs reads the variable in the environment of `ray start`, and kills after 3 s without it."""
    from introspect_ray.config import load_config

    (folder,) = find_spec("ray").submodule_search_locations
    assert '"RAY_JOB_STOP_WAIT_TIME_S"' in Path(folder, "dashboard/modules/job/job_supervisor.py").read_text()
    given = re.search(r"^ +RAY_JOB_STOP_WAIT_TIME_S=(\d+) ", DOCKERFILE, re.M)[1]
    assert int(given) > load_config().stop_within_s
