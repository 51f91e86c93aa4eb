"""What jobs are put into: disks with little room, a store and an MLflow server behind a proxy, a cluster of nodes.

A small disk is a tmpfs in a mount namespace that ends with its last process: nothing of it is left on the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.job import REPO, Around
from tests.conftest import free_ports
from tests.faulty_proxy import faulty_proxy
from tests.ray.head import head, kill_family, node, wait_for

PATIENCE = "patience_s=4"  # of the job, so that an outage becomes final soon


@dataclass(frozen=True)
class Needs:
    """What the session has for those that need it. s3: a new prefix on a real S3 server, to which the environment of
    this process leads. undisturbed: from a kind of job to the folder of a run that nothing happened to."""

    s3: Callable[[], str]
    undisturbed: Callable[[str], Path]


class Disk:
    """A small disk that can be filled. path: where the job has it; seen: where this process does."""

    def __init__(self, path: str, seen: Path) -> None:
        self.path, self.seen = path, seen

    def fill(self) -> None:
        with open(self.seen / "filler", "ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 16))
        with open(self.seen / "filler", "ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1))  # the rest of the last page

    def empty(self) -> None:
        (self.seen / "filler").unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(path: str, megabytes: int) -> Iterator[tuple[Disk, list[str]]]:
    """The disk at `path` in a mount namespace of its own, and the command that runs another one in there."""
    if os.geteuid() or not shutil.which("nsenter"):
        pytest.skip("a small disk is mounted: needs root and util-linux")
    Path(path).mkdir(parents=True, exist_ok=True)
    script = f"mount -t tmpfs -o size={megabytes}m chaos '{path}' && echo there && exec sleep infinity"
    holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline().strip() != "there":
            pytest.skip("a small disk is mounted: this container may not mount")
        inside = ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", f"--wd={REPO}"]
        yield Disk(path, Path(f"/proc/{holder.pid}/root{path}")), inside
    finally:
        holder.kill()
        holder.wait()


@contextlib.contextmanager
def output_on_small_disk(folder: Path, needs: Needs) -> Iterator[Around]:
    with small_disk(str(folder / "disk"), 24) as (disk, inside):
        out = {"out": f"{disk.path}/run", "seen": str(disk.seen / "run")}
        yield Around([f"cache_dir={folder / 'cache'}"], prefix=inside, tools={"disk": disk}, **out)


@contextlib.contextmanager
def cache_on_full_disk(folder: Path, needs: Needs) -> Iterator[Around]:
    with small_disk(str(folder / "disk"), 1) as (disk, inside):
        disk.fill()
        yield Around([f"cache_dir={disk.path}"], prefix=inside, tools={"disk": disk})


@contextlib.contextmanager
def small_shm(folder: Path, needs: Needs) -> Iterator[Around]:
    """Ray keeps its objects there only if all of its store would fit, so the store is made small too."""
    with small_disk("/dev/shm", 160) as (disk, inside):
        yield Around(
            env={"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "100000000"}, prefix=inside, tools={"disk": disk}
        )


@contextlib.contextmanager
def store_behind_proxy(folder: Path, needs: Needs) -> Iterator[Around]:
    """Output and cache on S3; this process asks the server itself, past the proxy."""
    s3 = needs.s3()
    with faulty_proxy(os.environ["AWS_ENDPOINT_URL"], 0.0) as proxy:
        out, env = f"{s3}/run", {"AWS_ENDPOINT_URL": proxy.url}
        yield Around([f"cache_dir={s3}/cache", PATIENCE], env, out=out, seen=out, tools={"proxy": proxy})


class Server:
    """An MLflow server of our own, which can be ended by SIGKILL and started again on the same store."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with open(self._folder / "mlflow.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        wait_for(f"{self.url}/health", "mlflow server", self._folder / "mlflow.log", seconds=180)

    def kill(self) -> None:
        if self._process is not None:
            kill_family(self._process)
        self._process = None


@contextlib.contextmanager
def mlflow_behind_proxy(folder: Path, needs: Needs, *, up: bool = True) -> Iterator[Around]:
    server = Server(folder)
    try:
        if up:
            server.start()
        with faulty_proxy(server.url, 0.0) as proxy:
            words = ["tracking.backend=mlflow", f"tracking.uri={proxy.url}", "tracking.patience_s=3"]
            yield Around(words, tools={"server": server, "proxy": proxy})
    finally:
        server.kill()


def mlflow_not_started(folder: Path, needs: Needs) -> AbstractContextManager[Around]:
    return mlflow_behind_proxy(folder, needs, up=False)


@contextlib.contextmanager
def cluster(folder: Path, needs: Needs) -> Iterator[Around]:
    """A head with one CPU and two nodes beside it with two each: a job needs two, so one node can go."""
    with contextlib.ExitStack() as started:
        _, env = started.enter_context(head(folder, cpus=0))
        nodes = [started.enter_context(node(folder / f"node{number}.log", env, 2)) for number in range(2)]
        mine = {name: env[name] for name in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
        yield Around(env=mine, tools={"nodes": nodes})


@contextlib.contextmanager
def copied_policy(folder: Path, needs: Needs) -> Iterator[Around]:
    """The bundled policy in a folder of the cell, whose weights can be exchanged."""
    from introspect_ray.policy import BUNDLED

    policy = shutil.copytree(BUNDLED["organism"], folder / "policy")
    yield Around([f"policy={policy}"], tools={"policy": policy})


@contextlib.contextmanager
def nothing(folder: Path, needs: Needs) -> Iterator[Around]:
    yield Around()
