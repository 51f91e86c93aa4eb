"""Whether what a run needs answers: a Ray cluster, its stores. Their libraries try a dead one for minutes."""

from __future__ import annotations

import os
import sys
import threading

from introspect_ray.errors import UserError, one_line
from introspect_ray.storage import check_writable, is_remote

ANSWER_S = 10.0  # for a cluster
STORE_S = 30.0  # for a store, with its library's own further tries
_CLIENT = "ray://"


def check_cluster(address: str, key: str) -> None:
    """Raises UserError unless a Ray head answers at `address`, as Ray's gRPC servers do. key: where it comes from.

    auto stands for the cluster of this machine, local for a new one. A process that has joined a cluster stays in it,
    and nothing is asked.
    """
    if address == "local" or _joined():
        return
    try:
        _ask(_this_machines() if address == "auto" else address.removeprefix(_CLIENT))
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(
            f"{key}={address}: no Ray cluster answers there within {ANSWER_S:g} s ({one_line(error)}): start one, "
            f"correct {key}, or leave ray_address and RAY_ADDRESS out for a local one"
        ) from None


def check_store(key: str, uri: str) -> None:
    """Raises UserError if the folder or store `uri` of the config key `key` cannot be written to, or has not said
    within STORE_S whether it can. Changes nothing."""
    if not is_remote(uri):
        check_writable(uri)
        return
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            check_writable(uri)
        except BaseException as error:  # raised below, in the thread that waits
            failures.append(error)

    asked = threading.Thread(target=ask, daemon=True)  # one that hangs keeps no process alive
    asked.start()
    asked.join(STORE_S)
    if asked.is_alive():
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        raise UserError(
            f"{key}={uri}: {endpoint.rpartition('@')[2]} gave no answer within {STORE_S:g} s: check the network and "
            "AWS_ENDPOINT_URL"
        )
    if failures:
        raise failures[0]


def _joined() -> bool:
    ray = sys.modules.get("ray")  # not imported: not joined
    return ray is not None and bool(ray.is_initialized())


def _this_machines() -> str:
    """The address that Ray takes for "auto". Raises ConnectionError where there is none, or more than one."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    found: str = canonicalize_bootstrap_address_or_die("auto")
    return found


def _ask(address: str) -> None:
    """Raises OSError where nothing listens, ValueError for what is no HOST:PORT, TimeoutError where what listens does
    not answer as a gRPC server."""
    import socket

    import grpc

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("expected HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return  # its certificates are Ray's matter
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            raise TimeoutError("something listens there, and it does not answer as a Ray head") from None
