"""How a new policy version gets from the trainer to the engines: the transfers, behind one interface.

    transfer       moves                 through                       engine's receipt
    ------------------------------------------------------------------------------------------------
    object_store   policy or adapter     rank 0's gather on CPU, Ray   fingerprints of what it was handed
    nccl, ipc      policy                vLLM's trainer-side API       fingerprints of what it received, on its device

All receipts are Deliveries and are verified alike (weight_sync.verify). The fingerprints are of the tensors that left
the transport, before vLLM's loader shards, fuses or packs them; the probe shows that the loader kept them. nccl and ipc
keep no copy of a version, so an engine that dies with it can only be given the next version.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import ray

from introspect_ray.actors.weight_sync import Expected, Tolerance, pack, probe_tolerance
from introspect_ray.cases.probes import Probe
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import weight_transfer
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.engines.protocol import WeightUpdate

if TYPE_CHECKING:
    from introspect_ray.actors.pool import RolloutPool
    from introspect_ray.engines.vllm_sender import Endpoint, Sender
    from introspect_ray.training.learner import Learner


class PublishedWeights(NamedTuple):
    """A version that is being delivered: what its receipts must say, and their futures, one per engine.

    (None, []) off rank 0. stored: ref of the packed update, if a copy is kept.
    """

    expected: Expected | None
    receipts: list[Any]
    stored: Any = None


class WeightTransfer(Protocol):
    """One trainer rank's way to all engines."""

    def send(self, learner: Learner, version: int, probe: Probe) -> PublishedWeights:
        """Start serving the learner's weights as `version`. Every rank calls it, in lockstep."""
        ...


def make_transfer(cfg: RunConfig, pool: RolloutPool, rank: int) -> WeightTransfer:
    """The transfer of a run, for which the engines of the pool were started. Without engines it only says what
    receipts of the weights would have to say."""
    kind, tolerance = weight_transfer(cfg), probe_tolerance(cfg)
    if kind == "object_store" or not pool.actors:
        return ObjectStoreTransfer(cfg.method, pool, rank, tolerance)
    return DeviceTransfer(kind, pool, rank, tolerance, cfg.rollout.tensor_parallel_size)


class ObjectStoreTransfer:
    """Rank 0 gathers the tensors on the CPU and stores them once; every engine maps and loads them."""

    def __init__(self, method: Literal["full", "lora"], pool: RolloutPool, rank: int, tolerance: Tolerance) -> None:
        """tolerance: see Expected."""
        self._method, self._pool, self._rank, self._tolerance = method, pool, rank, tolerance

    def send(self, learner: Learner, version: int, probe: Probe) -> PublishedWeights:
        """Does not wait for the engines: they load while the trainer computes its logprobs on the probe."""
        tensors = learner.weights(copy=False)  # ray.put copies them
        if tensors is None:
            learner.probe(probe)
            return PublishedWeights(None, [])
        if self._method == "lora":
            update = WeightUpdate(version, "adapter", tensors, probe, learner.adapter_config())
        else:
            update = WeightUpdate(version, "full", tensors, probe)
        stored = ray.put(pack(update)) if self._pool.actors else None
        receipts = self._pool.load_weights(stored)
        with ThreadPoolExecutor(1, "fingerprint") as beside:
            marks = beside.submit(fingerprints, tensors)
            probed = learner.probe(probe)
        return PublishedWeights(Expected(version, marks.result(), probed, self._tolerance), receipts, stored)


class DeviceTransfer:
    """From GPU to GPU by vLLM's trainer-side weight transfer. `send` waits until every engine has the weights."""

    def __init__(
        self, backend: Literal["nccl", "ipc"], pool: RolloutPool, rank: int, tolerance: Tolerance, engine_workers: int
    ) -> None:
        """tolerance: see Expected. engine_workers: processes per engine, its tensor_parallel_size."""
        self._backend, self._pool, self._rank, self._workers = backend, pool, rank, engine_workers
        self._tolerance = tolerance
        self._sender: Sender | None = None

    def send(self, learner: Learner, version: int, probe: Probe) -> PublishedWeights:
        expected = learner.probe(probe)
        if self._backend == "ipc":
            _make_room()
        if self._sender is None:
            self._sender = self._open(learner)
        fingerprints = self._sender.send()
        if self._rank:
            return PublishedWeights(None, [])
        receipts = [actor.engine.remote("confirm", version, probe) for actor in self._pool.actors]
        return PublishedWeights(Expected(version, fingerprints, expected, self._tolerance), receipts)

    def _open(self, learner: Learner) -> Sender:
        from introspect_ray.engines.vllm_sender import Sender

        client = EngineClient(self._pool.actors, self._workers)
        if self._rank == 0:
            client.check([(name, shape) for name, _, shape in learner.described()])
        return Sender(self._backend, learner, self._rank, client, self._endpoint)

    def _endpoint(self) -> Endpoint:
        from introspect_ray.engines.vllm_sender import Endpoint

        return Endpoint(ray.util.get_node_ip_address(), _free_port(), 1 + len(self._pool.actors) * self._workers)


def _make_room() -> None:
    """Give back what torch keeps of this rank's GPU, on all ranks: the engines beside them wake up to be updated."""
    import torch

    torch.cuda.empty_cache()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


class EngineClient:
    """vLLM's VLLMWeightSyncClient over rollout actors; a call waits for all of them.

    vLLM's own Ray client tells every engine the same rank offset, which is right for the data-parallel replicas of one
    engine. Here each actor has an engine of its own, which needs its own place in the NCCL group.
    """

    def __init__(self, actors: list[Any], engine_workers: int) -> None:
        """engine_workers: processes per engine."""
        self._actors, self._workers = actors, engine_workers

    def check(self, shapes: list[tuple[str, tuple[int, ...]]]) -> None:
        """Raises ValueError for the first tensor whose name or shape differs between the policy and the engines."""
        ray.get([actor.engine.remote("check_shapes", dict(shapes)) for actor in self._actors])

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Closes the connection of an earlier training first; RolloutPool.revive deals with its unfinished updates."""
        self._all("shutdown_weight_transfer_engine", [{}] * len(self._actors))
        infos = [dict(init_info) for _ in self._actors]
        for i, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += i * self._workers
        self._all("init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        self._all("start_weight_update", [{}] * len(self._actors))

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", [{"update_info": update_info}] * len(self._actors))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Without the version: the engine learns it from `confirm`."""
        self._all("finish_weight_update", [{}] * len(self._actors))

    def _all(self, call: str, arguments: list[dict[str, Any]]) -> None:
        ray.get([actor.engine.remote("transfer", call, kwargs) for actor, kwargs in zip(self._actors, arguments)])


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]
