"""On a Ray of one machine (runs/local_ray.py), torch's rendezvous listens on loopback alone.

torch's TCPStore listens on all addresses of the machine, whatever host it is given, unless it is handed a socket (torch
2.13, TCPStoreLibUvBackend.cpp). It has no authentication.
"""

from __future__ import annotations

import importlib
import os
import socket
from typing import Any

ALONE = "INTROSPECT_RAY_ONE_MACHINE"  # "1" in the processes of such a Ray
HOST = "127.0.0.1"


def keep_local() -> None:
    """In this process, from now on. Does nothing on a cluster. Imports torch."""
    if os.environ.get(ALONE) != "1":
        return
    from torch.distributed import TCPStore

    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")  # a function hides it

    def local(host_name: str, port: int, *more: Any, is_master: bool = False, **options: Any) -> Any:
        if is_master and host_name in (HOST, "localhost"):
            listener = socket.create_server((HOST, port), backlog=128)
            options["master_listen_fd"] = listener.detach()  # the store closes it
        return TCPStore(host_name, port, *more, is_master=is_master, **options)

    rendezvous.TCPStore = local
