"""A pool of rollout actors, each with one engine. Fixed groups in, futures out; no learning decision in here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from introspect_ray.config import RolloutConfig
from introspect_ray.distributed.weight_sync import unpack
from introspect_ray.engines import make_engine
from introspect_ray.engines.base import WeightUpdate
from introspect_ray.preflight import local_policy
from introspect_ray.records import BehaviorPair, Delivery, TokenizedCase


@dataclass(frozen=True)
class EngineSpec:
    """What a rollout actor needs to start its engine."""

    policy: str  # a name that every node resolves on its own disk
    max_model_len: int
    method: str
    lora_rank: int
    seed: int


@dataclass(frozen=True)
class RolloutResult:
    """Behaviour pairs of one group, with the seconds spent and the seconds idle before it."""

    pairs: list[BehaviorPair]
    seconds: float
    idle_s: float


class RolloutWorker:
    """One engine in one process."""

    def __init__(self, rollout: RolloutConfig, spec: EngineSpec) -> None:
        self._engine = make_engine(
            rollout,
            local_policy(spec.policy),
            max_model_len=spec.max_model_len,
            method=spec.method,
            lora_rank=spec.lora_rank,
            seed=spec.seed,
        )
        self._cases: dict[str, TokenizedCase] = {}
        self._free_since = time.perf_counter()

    def register(self, cases: Sequence[TokenizedCase]) -> None:
        """Keep the cases here, so that a step sends ids only."""
        self._cases = {case.case_id: case for case in cases}

    def load_weights(self, packed: WeightUpdate) -> Delivery:
        delivery = self._engine.load_weights(unpack(packed))
        self._free_since = time.perf_counter()
        return delivery

    def label(self, case_ids: Sequence[str], version: int) -> RolloutResult:
        """Pairs of the cases on weight `version`. Raises if the engine serves another one."""
        began = time.perf_counter()
        idle = began - self._free_since
        if self._engine.weight_version != version:
            raise RuntimeError(f"asked for weight version {version}, the engine serves {self._engine.weight_version}")
        pairs = self._engine.label_pairs([self._cases[case_id] for case_id in case_ids])
        self._free_since = time.perf_counter()
        return RolloutResult(pairs, self._free_since - began, idle)

    def engine(self, method: str, *args: Any) -> Any:
        """One call of the engine's own, for transfers that do not pass through here (weight_transfer.py)."""
        answer = getattr(self._engine, method)(*args)
        self._free_since = time.perf_counter()
        return answer

    def explain(self, case_ids: Sequence[str], max_tokens: int) -> list[tuple[int, ...]]:
        """Greedy continuations of the meta-questions."""
        tokens = self._engine.generate([self._cases[case_id].question for case_id in case_ids], max_tokens)
        self._free_since = time.perf_counter()
        return tokens


class RolloutPool:
    """Handles of equal rollout actors. Picklable: the trainer's rank 0 and the driver hold copies.

    Groups of `group_size` cases are cut from the given order and dealt out in turn: what is computed
    together does not depend on the size of the pool. Steps begin at actors of their own, so that at
    lag >= 1 the pool shares even steps of a single group.
    """

    def __init__(self, rollout: RolloutConfig, spec: EngineSpec) -> None:
        self.rollout = rollout
        self.spec = spec
        actor = ray.remote(num_cpus=rollout.num_cpus, num_gpus=rollout.num_gpus)(RolloutWorker)
        self.actors = [actor.remote(rollout, spec) for _ in range(rollout.num_actors)]

    def register(self, cases: Sequence[TokenizedCase]) -> None:
        ref = ray.put(list(cases))
        ray.get([actor.register.remote(ref) for actor in self.actors])

    def load_weights(self, packed_ref: Any) -> list[Any]:
        """Futures of one Delivery an actor."""
        return [actor.load_weights.remote(packed_ref) for actor in self.actors]

    def label(self, case_ids: Sequence[str], version: int, first: int = 0) -> list[Any]:
        """Futures of RolloutResult, one a group, in the order of the cases; `first` says which actor begins."""
        return [actor.label.remote(group, version) for actor, group in self._groups(case_ids, first)]

    def label_now(self, case_ids: Sequence[str], version: int) -> list[BehaviorPair]:
        return [pair for result in ray.get(self.label(case_ids, version)) for pair in result.pairs]

    def explain_now(self, case_ids: Sequence[str], max_tokens: int) -> list[tuple[int, ...]]:
        futures = [actor.explain.remote(group, max_tokens) for actor, group in self._groups(case_ids)]
        return [tokens for group in ray.get(futures) for tokens in group]

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def _groups(self, case_ids: Sequence[str], first: int = 0) -> list[tuple[Any, list[str]]]:
        size = self.rollout.group_size
        groups = [list(case_ids[i : i + size]) for i in range(0, len(case_ids), size)]
        return [(self.actors[(first + i) % len(self.actors)], group) for i, group in enumerate(groups)]
