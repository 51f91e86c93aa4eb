"""A Ray head of our own on loopback, as `ray start --head` makes it, and the end of processes by their ids."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.conftest import free_ports


@contextlib.contextmanager
def head(
    folder: Path,
    cpus: int = 2,
    workers: int = 0,
    autoscaler: Callable[[str], tuple[Path, dict[str, str]]] | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """(job server address, environment for `ray job submit`) while a head runs in the foreground of a child, with
    `workers` nodes beside it. RAY_ADDRESS is that of the head for `ray.init`. autoscaler: from the head's address to
    the file of its autoscaler's config, and what its environment must have."""
    gcs, dashboard, client, agent = free_ports(4)
    bin_dir = str(Path(sys.executable).parent)
    config, more = autoscaler(f"127.0.0.1:{gcs}") if autoscaler else (None, {})
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": f"{bin_dir}:{os.environ['PATH']}", **more}
    env.pop("RAY_ADDRESS", None)
    command = [
        f"{bin_dir}/ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",  # the default one may belong to another Ray of this machine
        f"--num-cpus={cpus}", f"--temp-dir={short_temp(folder)}", "--disable-usage-stats",
        *([f"--autoscaling-config={config}"] if config else []),
    ]  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    with contextlib.ExitStack() as started:
        started.enter_context(_running(command, env, folder / "head.log"))
        wait_for(f"{address}/api/version", "ray start --head", folder / "head.log", seconds=90)
        env["RAY_ADDRESS"] = f"127.0.0.1:{gcs}"
        for number in range(workers):
            started.enter_context(node(folder / f"worker{number}.log", env, cpus))
        yield address, env


@contextlib.contextmanager
def node(log: Path, env: dict[str, str], cpus: int) -> Iterator[subprocess.Popen[bytes]]:
    """A node beside the head of `env`, in a child process; it may die before the end (kill_family)."""
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--block", "--node-ip-address=127.0.0.1",
        f"--address={env['RAY_ADDRESS']}", f"--dashboard-agent-listen-port={free_ports(1)[0]}",
        f"--num-cpus={cpus}", "--disable-usage-stats",
    ]  # fmt: skip
    with _running(command, env, log) as process:
        yield process


@contextlib.contextmanager
def _running(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for member in [*family, process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        _, alive = psutil.wait_procs(family, timeout=10)
        for member in alive:
            member.kill()
        process.wait(timeout=30)


def short_temp(folder: Path) -> str:
    """Ray's socket paths must stay under 108 characters; pytest's folders are too deep."""
    path = Path("/tmp") / f"ir{os.getpid()}-{folder.name[-8:]}"
    path.mkdir(exist_ok=True)
    return str(path)


def wait_for(url: str, what: str, log: Path, seconds: float) -> None:
    """Until a server answers. what: it is, for the error; log: its output."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2).read()
            return
        time.sleep(0.5)
    raise RuntimeError(f"{what} did not come up:\n{log.read_text(errors='replace')[-3000:]}")


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """End a process and all its children by SIGKILL, and wait until they are gone."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(timeout=30)
    psutil.wait_procs(family, timeout=30)
