"""A Ray of this job alone, on one machine: how it starts, where it listens, and how it ends.

Nothing of it listens on an address that others can reach. Ray gives its processes the machine's address, even where it
is told 127.0.0.1; a switch that was made for firewalls on macOS and Windows is the only way to loopback (Ray 2.60).
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray
from ray._private import ray_constants

from introspect_ray import signals
from introspect_ray.engines.loopback import ALONE, HOST
from introspect_ray.errors import Outage, one_line

# No node of a local cluster is ever preempted, and Ray's worker niceness of 15 would starve the workers beside anything
# else on the machine. The rest: what torch's collectives and vLLM bind to.
_ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    ALONE: "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "VLLM_HOST_IP": HOST,
}
_STARTS = 3  # Ray gives its node 30 s to come up, which a busy machine may exceed
_GONE_S = 3.0  # for the processes of a local cluster to end by themselves
_OWN = ("raylet", "gcs_server")
_LOOK_MS = 1000  # between two looks whether the cluster is to end
_ending = threading.Event()  # of the cluster that was started last: it is meant to end


def start(cpus: int, options: dict[str, Any]) -> None:
    """Start a Ray on loopback and join it. cpus: logical ones. options: of ray.init, how it logs.

    Raises Outage if it does not come up.
    """
    global _ending
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with loopback():
        _patiently(lambda: ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options))
    _ending = threading.Event()
    threading.Thread(target=_watch, args=(_own(), _ending), name="local-ray", daemon=True).start()


@contextmanager
def loopback() -> Iterator[None]:
    """What Ray starts or joins in the body has the address 127.0.0.1.

    Ray has read the switch when it was imported, and its processes read it from the environment.
    """
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    inherited = os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if inherited is None:
            del os.environ[name]
        else:
            os.environ[name] = inherited


def end(hard: bool) -> None:
    """Leave the cluster; one that this process started ends. hard: its processes are gone when this returns."""
    _ending.set()
    local = own_processes() if hard else []
    ray.shutdown()
    _end(local)


def own_processes() -> list[psutil.Process]:
    """The raylet and the control store that this process started, and all that they started: workers and what those
    run."""
    found = []
    for child in _own():
        with suppress(psutil.Error):
            found += [child, *child.children(recursive=True)]
    return found


def _own() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            found += [child] if child.name() in _OWN else []
    return found


def _watch(processes: list[psutil.Process], ending: threading.Event) -> None:
    """Without its raylet or its control store no part of a local Ray can go on. Ray notices after up to a minute, and
    ends with a stack of C++ in every process."""
    waiting = select.poll()
    names = {os.pidfd_open(one.pid): f"{one.name()} (process {one.pid})" for one in processes}
    for descriptor in names:
        waiting.register(descriptor, select.POLLIN)
    while not ending.is_set():
        if ended := waiting.poll(_LOOK_MS):
            if not ending.is_set():
                who = names[ended[0][0]]
                signals.give_up(f"Ray's {who} has ended, without which no part of this job works; go on with --resume")
            break
    for descriptor in names:
        os.close(descriptor)


def _patiently(init: Callable[[], Any]) -> None:
    """Ray raises a bare Exception where its node did not come up in time, and other ones where one of its processes
    did not start."""
    for count in range(1, _STARTS + 1):
        try:
            init()
            return
        except Exception as error:
            with suppress(Exception):
                ray.shutdown()
            _end(own_processes(), 0.0)
            said = one_line(error)[:300]
            if count == _STARTS:
                raise Outage(
                    f"Ray did not start on this machine, {count} times in a row: {said}; its logs are in "
                    "/tmp/ray/session_latest/logs; look for other work on the machine, for room in /dev/shm and /tmp"
                ) from error
            print(f"warning: Ray did not start ({said}): started again", file=sys.stderr, flush=True)


def _end(processes: list[psutil.Process], patience_s: float = _GONE_S) -> None:
    """Kill those that do not end by themselves."""
    for process in psutil.wait_procs(processes, timeout=patience_s)[1]:
        with suppress(psutil.Error):
            process.kill()
