"""Who waits for which resources since when: told in the log and on the status board, until it is over.

Ray says nothing of it to the driver of a job (`log_to_driver` is off), and neither does its autoscaler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RpcError

from introspect_ray.records import Wait
from introspect_ray.runs.progress import polling

SAY_AFTER_S = 20.0  # a start of what there is room for takes less, but for large policies
SAY_AGAIN_S = 600.0
LOOK_S = 5.0
_REPLY_S = 10.0


@contextmanager
def watched(status: Any, run: str, look: Callable[[], Sequence[Wait]]) -> Iterator[None]:
    """Tell about what `look` finds while the body runs. status: handle of a StatusBoard. look: called in a thread."""
    told: dict[str, float] = {}
    looked = 0.0

    def tell() -> None:
        nonlocal looked
        now = time.time()
        if now - looked < LOOK_S:
            return
        looked = now
        waits = [wait for wait in look() if now - wait.since >= SAY_AFTER_S]
        if not waits and not told:
            return
        says = autoscaler_says() if waits else ""
        for line in news(told, waits, now):
            print(f"{line}{says}" if line.startswith("waiting") else line, flush=True)
        status.wait.remote(run, [f"{described(wait)}{says}" for wait in waits])

    try:
        with polling(tell, f"waits-{run}"):
            yield
    finally:
        if told:
            print(*news(told, [], time.time()), sep="\n", flush=True)
            status.wait.remote(run, [])


def news(told: dict[str, float], waits: Sequence[Wait], now: float) -> list[str]:
    """The lines to print now. told: who was told about, and when for the last time; updated."""
    lines = []
    for who in set(told) - {wait.who for wait in waits}:
        del told[who]
        lines.append(f"waited   for {who}: it is over at {_clock(now)}")
    for wait in waits:
        if now - told.get(wait.who, 0.0) >= SAY_AGAIN_S:
            told[wait.who] = now
            lines.append(f"waiting  {described(wait)}")
    return lines


def described(wait: Wait) -> str:
    """Example: "2 of 4 rollout actors need 1 CPU and 1 GPU each, since 05:20:11"."""
    return f"{wait.who} need {wait.needs}, since {_clock(wait.since)}"


def autoscaler_says() -> str:
    """What the cluster's autoscaler is doing, to be appended to a line; "" where there is none or it does nothing."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except (RpcError, ValueError):
        return ""
    found = [
        *(f"{one.count} x {one.ray_node_type_name} asked for" for one in status.pending_launches),
        *(f"{one.ray_node_type_name} is starting" for one in status.pending_nodes),
        *(f"{one.count} x {one.ray_node_type_name} failed ({one.details})" for one in status.failed_launches),
    ]
    return f"; autoscaler: {', '.join(found)}" if found else ""


def of_actor(call: Callable[[], Any], otherwise: Any) -> Any:
    """What an actor answers; `otherwise` if it has gone or does not answer."""
    try:
        return ray.get(call(), timeout=_REPLY_S)
    except (RayActorError, GetTimeoutError):
        return otherwise


def bundle(resources: Mapping[str, float]) -> str:
    """Example: "1 CPU and 1 GPU each"."""
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items()) + " each"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
