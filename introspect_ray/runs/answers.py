"""Whether a Ray cluster answers at an address, within seconds. Ray itself tries a dead one for minutes."""

from __future__ import annotations

import os
import sys

from introspect_ray.errors import UserError, one_line

ANSWER_S = 10.0
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
