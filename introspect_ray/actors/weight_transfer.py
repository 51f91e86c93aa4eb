"""Ways of a new policy version from the trainer to the engines, behind one small interface.

    transfer       moves                 through                       engine's receipt
    ------------------------------------------------------------------------------------------------
    object_store   policy or adapter     rank 0's gather on CPU, Ray   fingerprints of what it was handed
    nccl, ipc      policy                vLLM's trainer-side API       fingerprints of what it received, on its device

All receipts are Deliveries and are verified alike (weight_sync.verify): the fingerprints are of the tensors that
left the transport, before vLLM's loader shards, fuses or packs them; that the loader kept them is shown by the
probe. nccl and ipc keep no copy of a version: an engine lost with it can be given the next version only.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import ray

from introspect_ray.actors.weight_sync import Expected, expect, pack
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import weight_transfer
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.records import TokenizedCase

if TYPE_CHECKING:
    from introspect_ray.actors.pool import RolloutPool
    from introspect_ray.engines.vllm_sender import Endpoint, Sender
    from introspect_ray.train.learner import Learner


class Sent(NamedTuple):
    """A version on its way: what its receipts must say, and futures of them, one an engine. (None, []) off rank 0.

    stored: reference of the packed update, where one is kept.
    """

    expected: Expected | None
    receipts: list[Any]
    stored: Any = None


class WeightTransfer(Protocol):
    """One trainer rank's door to all engines."""

    def send(self, learner: Learner, version: int, probe: TokenizedCase) -> Sent:
        """Start serving the learner's weights as `version`. Every rank calls it, in lockstep."""
        ...


def make_transfer(cfg: RunConfig, pool: RolloutPool, rank: int) -> WeightTransfer:
    """The transfer of a run; the pool's engines were started for it (transfer_choice.py)."""
    kind = weight_transfer(cfg)
    if kind == "object_store":
        return ObjectStoreTransfer(cfg.method, pool, rank)
    return DeviceTransfer(kind, pool, rank, cfg.rollout.tensor_parallel_size)


class ObjectStoreTransfer:
    """Rank 0 gathers on the CPU and stores the tensors once; every engine maps and loads them."""

    def __init__(self, method: Literal["full", "lora"], pool: RolloutPool, rank: int) -> None:
        self._method, self._pool, self._rank = method, pool, rank

    def send(self, learner: Learner, version: int, probe: TokenizedCase) -> Sent:
        """Does not wait for the engines: they load while the trainer computes its own side of the receipt."""
        tensors = learner.weights()
        if tensors is None:
            learner.probe(probe)
            return Sent(None, [])
        if self._method == "lora":
            update = WeightUpdate(version, "adapter", tensors, probe, learner.adapter_config())
        else:
            update = WeightUpdate(version, "full", tensors, probe)
        stored = ray.put(pack(update))
        receipts = self._pool.load_weights(stored)
        return Sent(expect(update, learner.probe(probe)), receipts, stored)


class DeviceTransfer:
    """GPU to GPU by vLLM's trainer-side weight transfer. A send waits until every engine has the weights."""

    def __init__(self, backend: Literal["nccl", "ipc"], pool: RolloutPool, rank: int, workers_each: int) -> None:
        """workers_each: processes of an engine, its tensor_parallel_size."""
        self._backend, self._pool, self._rank, self._each = backend, pool, rank, workers_each
        self._sender: Sender | None = None

    def send(self, learner: Learner, version: int, probe: TokenizedCase) -> Sent:
        expected = learner.probe(probe)
        if self._sender is None:
            self._sender = self._open(learner)
        fingerprints = self._sender.send()
        if self._rank:
            return Sent(None, [])
        receipts = [actor.engine.remote("confirm", version, probe) for actor in self._pool.actors]
        return Sent(Expected(version, fingerprints, expected), receipts)

    def _open(self, learner: Learner) -> Sender:
        from introspect_ray.engines.vllm_sender import Sender

        client = EngineClient(self._pool.actors, self._each)
        if self._rank == 0:
            client.check([(name, shape) for name, _, shape in learner.described()])
        return Sender(self._backend, learner, self._rank, client, self._endpoint)

    def _endpoint(self) -> Endpoint:
        from introspect_ray.engines.vllm_sender import Endpoint

        return Endpoint(ray.util.get_node_ip_address(), _free_port(), 1 + len(self._pool.actors) * self._each)


class EngineClient:
    """vLLM's VLLMWeightSyncClient over rollout actors; a call waits for all of them.

    vLLM's own Ray client tells every engine the same rank offset, which is right for one engine of several
    data-parallel replicas; ours are engines of their own, so each is given its own place in the NCCL group.
    """

    def __init__(self, actors: list[Any], workers_each: int) -> None:
        self._actors, self._each = actors, workers_each

    def check(self, shapes: list[tuple[str, tuple[int, ...]]]) -> None:
        """Raises ValueError for the first name or shape in which the policy is not the engines'."""
        ray.get([actor.engine.remote("check_shapes", dict(shapes)) for actor in self._actors])

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """A training before this one may have left its connection open (an update: RolloutPool.revive)."""
        self._all("shutdown_weight_transfer_engine", [{}] * len(self._actors))
        infos = [dict(init_info) for _ in self._actors]
        for i, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += i * self._each
        self._all("init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        self._all("start_weight_update", [{}] * len(self._actors))

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", [{"update_info": update_info}] * len(self._actors))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The version is set when the engine confirms it."""
        self._all("finish_weight_update", [{}] * len(self._actors))

    def _all(self, call: str, arguments: list[dict[str, Any]]) -> None:
        ray.get([actor.engine.remote("transfer", call, kwargs) for actor, kwargs in zip(self._actors, arguments)])


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]
