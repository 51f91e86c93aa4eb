"""Run a function on two gloo ranks, each in a process of its own."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """What work(rank, *args) returns on rank 0 and on rank 1. `work` is a function of a module; `folder` is scratch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (port, work, str(folder), args), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def _rank(rank: int, port: int, work: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    try:
        torch.set_num_threads(1)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="")
        dist.init_process_group("gloo", rank=rank, world_size=2)
        torch.save(work(rank, *args), f"{folder}/rank{rank}.pt")
        dist.destroy_process_group()
    except Exception:
        traceback.print_exc()
        raise
