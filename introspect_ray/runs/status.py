"""`introspect-ray status`: what the running jobs of a cluster do, from any terminal of one of its machines.

Every job has a status board, an actor with a name; this joins the cluster as a further driver, reads the boards and
what the cluster lacks, and leaves.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from introspect_ray.actors.status import NAMESPACE, boards
from introspect_ray.cli import Arguments
from introspect_ray.config import load_config
from introspect_ray.config.load import cluster_address
from introspect_ray.errors import UserError
from introspect_ray.runs.demands import usage_line, waiting_lines
from introspect_ray.runs.local_ray import loopback
from introspect_ray.runs.status_text import job_lines

_ANSWER_S = 10.0  # for a board


def status_job(args: Arguments) -> None:
    """Print the status once, or every --watch seconds until there is no job any more.

    Raises UserError where no cluster is found or joined, and where none of them runs a job of ours.
    """
    if foreign := sorted(args.overrides.keys() - {"ray_address"}):
        raise UserError(f"status has no key {foreign[0]!r}: it takes ray_address=HOST:PORT, --config and --watch alone")
    address = cluster_address(load_config(args.config, args.overrides))
    address = None if address in ("auto", "local") else address  # what Ray calls the clusters of this machine
    every = args.flags["watch"]
    seen = False
    while True:
        lines = _all_lines(address)
        if not lines:
            if seen:
                return
            where = f"the cluster at {address}" if address else "this machine's clusters"
            raise UserError(f"no job of ours runs on {where}: a job is seen from its set-up on until it ends")
        seen = True
        print("\n".join(lines), flush=True)
        if every is None:
            return
        time.sleep(every)
        print()


def _all_lines(address: str | None) -> list[str]:
    """The lines of all jobs: of the cluster at `address`, else of all clusters that run on this machine."""
    found = [address] if address else local_clusters()
    if not found:
        raise UserError(
            "no Ray cluster runs on this machine: start a job, name a cluster with ray_address=HOST:PORT or "
            "RAY_ADDRESS, or submit jobs/status.py to it"
        )
    lines: list[str] = []
    for one in found:
        with joined(one, several=len(found) > 1) as inside:
            lines += cluster_report() if inside else []
    return lines


def local_clusters() -> list[str]:
    """Addresses of the clusters that have a process on this machine."""
    from ray._private.services import find_gcs_addresses

    find_gcs_addresses.cache_clear()  # with --watch: of the time before
    return sorted(find_gcs_addresses())


@contextmanager
def joined(address: str, *, several: bool) -> Iterator[bool]:
    """Join the cluster while the body runs; False where it cannot be joined and is one of `several`.

    Raises UserError where it is the only one.
    """
    try:
        _knock(address)
        with loopback() if address.startswith("127.") else nullcontext():  # of a job that started it for itself
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, ValueError, RuntimeError) as error:
        if not several:
            line = " ".join(str(error).split())[:200]
            raise UserError(
                f"no Ray cluster at {address}: {line}; give HOST:PORT of a head as ray_address, on one of its machines"
            ) from None
        yield False
        return
    try:
        yield True
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nothing listens, ValueError for what is no HOST:PORT. Ray itself tries for two minutes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_ANSWER_S):
        pass


def cluster_report() -> list[str]:
    """The lines on the jobs of the cluster that this process has joined, and on what it lacks; none without a job."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    lines = [line for board in boards() for line in _of_board(board)]
    if not lines:
        return []
    status = _tried(lambda: get_cluster_status(ray.get_runtime_context().gcs_address))
    if status is None:
        return [*lines, "cluster    does not answer"]
    lacking = [f"           {line}" for line in waiting_lines(status, time.time())]
    return [*lines, f"cluster    {usage_line(status)}", *lacking]


def _of_board(board: Any) -> list[str]:
    """The lines of one job; one that ends in this moment has none."""
    try:
        return job_lines(ray.get(board.snapshot.remote(), timeout=_ANSWER_S))
    except GetTimeoutError:
        return [f"job        does not answer within {_ANSWER_S:g} s"]
    except RayError:
        return []


def _tried(ask: Callable[[], Any]) -> Any:
    """The answer; None after an error of the connection, for which Ray and gRPC have no common class."""
    try:
        return ask()
    except Exception:
        return None
