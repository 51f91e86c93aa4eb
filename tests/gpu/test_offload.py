"""train.offload on a CUDA device: weights and optimizer state are on the CPU, and training gives the same weights."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from learner_helpers import make_labels, make_pairs
from torch.distributed.tensor import DTensor

from introspect_ray.cases.probes import case_item
from introspect_ray.config import RunConfig
from introspect_ray.policy import BUNDLED
from introspect_ray.records import TokenizedCase
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

pytestmark = pytest.mark.gpu


def train(offload: bool, method: str, cases: list[TokenizedCase], folder: str) -> dict[str, torch.Tensor]:
    """The weights after two steps, a checkpoint that another learner loads, and one more step of that learner."""
    config = RunConfig.model_validate({
        "learning_rate": 1e-3, "batch_size": len(cases), "method": method, "lora_rank": 4,
        "train": {"use_gpu": True, "offload": offload, "token_budget": 1024, "attention": "sdpa"},
    })  # fmt: skip
    path = build_reference(str(BUNDLED["organism:second"]), cases, None, folder)

    def make() -> Learner:
        return Learner(config, str(BUNDLED["organism"]), path, {case.case_id: case for case in cases})

    labels, m0 = make_labels(cases), make_pairs(cases)
    first, second = make(), make()
    for _ in range(2):
        first.probe((case_item(cases[0]),))
        first.step(labels, m0)
    if offload:
        shards = [p for p in first.module.parameters() if isinstance(p, DTensor)]
        state = [v for values in first.optimizer.state.values() for v in values.values()]
        assert len(shards) > 10 and all(t.to_local().device.type == "cpu" for t in shards)
        assert len(state) > 10 and all(v.device.type == "cpu" for v in state)
    if method == "full":
        assert {tensor.device.type for _, tensor in first.stream()} == {"cuda"}  # as the NCCL and IPC senders need
    first.save_checkpoint(f"{folder}/{method}-{offload}").result()
    second.load_checkpoint(f"{folder}/{method}-{offload}")
    second.step(labels, m0)
    weights = second.weights()
    assert weights is not None
    return weights


def main(rank: int, port: int, cases: list[TokenizedCase], folder: str) -> None:
    """One rank is enough: on a GPU, FSDP2 shards the model then too."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.cuda.set_device(0)
    made: dict[str, Any] = {"full": [], "lora": []}
    for offload, backend in ((False, "nccl"), (True, "cpu:gloo,cuda:nccl")):  # as Ray Train initialises them
        dist.init_process_group(backend, rank=rank, world_size=1)
        for method, weights in made.items():
            weights.append(train(offload, method, cases, folder))
        dist.destroy_process_group()
    torch.save(made, f"{folder}/weights.pt")


@pytest.mark.timeout(900)
def test_offloaded_training_gives_the_same_weights(cases, tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(main, (port, cases, str(tmp_path)), nprocs=1)
    for method, (plain, offloaded) in torch.load(tmp_path / "weights.pt").items():
        assert plain.keys() == offloaded.keys() and len(plain) > 10
        for name, tensor in plain.items():
            torch.testing.assert_close(offloaded[name], tensor, rtol=0, atol=3e-5, msg=f"{method} {name}")
