"""What all trials of a sweep share, made once: engines, M0's labels and explanations, its reference cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import ray

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import EngineSpec, Serving
from introspect_ray.actors.status import StatusBoardActor
from introspect_ray.cases.lookup import records_of
from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import decode_explanation
from introspect_ray.config import RunConfig, override
from introspect_ray.config.compatibility import trainer_gpus, weight_transfer
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.labels.store import label_set_key, load_pairs, save_pairs
from introspect_ray.policy import local_policy
from introspect_ray.records import BehaviorPair, Explanation
from introspect_ray.runs.cluster import on_this_node
from introspect_ray.runs.preflight import Prepared
from introspect_ray.scores.evaluation import evaluate
from introspect_ray.scores.metrics import Finding, collapse

GROUPS_AT_ONCE = 256  # groups of M0's labels that wait for an engine or to be put into the table
PLAIN = {"method": "full", "train.reference": "cache"}  # for engines that serve a whole policy and no adapter


@dataclass(frozen=True)
class SharedSetup:
    """What all trials of a sweep share: engines, M0's labels, its reference cache. Picklable."""

    prepared: Prepared
    pool: RolloutPool
    status: Any  # handle of a StatusBoard
    reference_path: str | None  # None: a live reference
    m0: Any  # ref of Mapping[case id, BehaviorPair], training and test cases
    m0_test: list[BehaviorPair]
    m0_explanations: list[Explanation | None]  # untrained, on the test cases
    second: Mapping[str, BehaviorPair] | None  # the second policy's, for mixed supervision
    train: Any  # ref of the training cases, a CaseTable
    auxiliary: Any  # ref of the AuxiliaryTable; None without auxiliary data
    prefix_hit_rate: float | None  # of labelling with M0; None where its labels were cached
    seconds: dict[str, float]  # spent here, by "setup" and "eval"


def set_up(cfg: RunConfig, prepared: Prepared, *, lora_rank: int | None = None) -> SharedSetup:
    """Start the pool, label all cases with M0 and cache its reference distribution. Once per sweep.

    lora_rank: the largest of the trials; None: the config's.
    """
    began = time.perf_counter()
    train, test = ray.put(prepared.train), ray.put(prepared.test)
    reference: Any = None
    if cfg.train.reference == "cache":  # made while the engines start
        options = (cfg.train.dtype, cfg.train.token_budget)
        reference = _reference_task(cfg).remote(cfg.policy, train, prepared.cache_uri, *options)
    pool = start_pool(cfg, cfg.policy, prepared, lora_rank or cfg.lora_rank, [train, test])
    status = StatusBoardActor.options(scheduling_strategy=on_this_node()).remote()
    pool.wait()
    ready = time.perf_counter()
    m0 = _pairs(cfg, prepared, pool, prepared.policy_id)
    hit_rate = pool.prompt_tokens.hit_rate
    m0_test = records_of(m0, prepared.test.case_ids)
    explanations = explain(pool, prepared, Serving())
    second = _second_pairs(cfg, prepared, [train, test])
    evaluated = time.perf_counter()
    return SharedSetup(
        prepared=prepared,
        pool=pool,
        status=status,
        reference_path=ray.get(reference) if reference else None,
        m0=ray.put(m0),
        m0_test=m0_test,
        m0_explanations=explanations,
        second=second,
        train=train,
        auxiliary=ray.put(prepared.auxiliary) if prepared.auxiliary is not None else None,
        prefix_hit_rate=hit_rate,
        seconds={"setup": ready - began, "eval": evaluated - ready},
    )


def explain(pool: RolloutPool, prepared: Prepared, serving: Serving) -> list[Explanation | None]:
    """The served policy's explanations of the test cases, generated greedily and parsed; None: unparseable."""
    tokens = pool.explain_now(prepared.test.case_ids, prepared.max_explanation_tokens, serving)
    return [
        decode_explanation(ids, prepared.tokenizer, case.labels)
        for ids, case in zip(tokens, prepared.test, strict=True)
    ]


def untrained_scores(setup: SharedSetup) -> dict[str, Any]:
    """Metrics of M0 itself, before training: Self and Orig coincide."""
    return evaluate(setup.m0_test, setup.m0_test, setup.m0_explanations)


def findings(setup: SharedSetup) -> list[Finding]:
    """What makes M0 a weak subject (collapsed labels, a limitation that the paper names), with the numbers."""
    return collapse(setup.m0_test)


def start_pool(cfg: RunConfig, policy: str, prepared: Prepared, lora_rank: int, cases: Sequence[Any]) -> RolloutPool:
    """A pool that answers for `cases`, refs of CaseTables."""
    cfg = override(cfg, {"rollout.weight_transfer": weight_transfer(cfg)})  # engines need the choice, not "auto"
    spec = EngineSpec(policy, prepared.max_model_len, cfg.method, lora_rank, cfg.seed)
    return RolloutPool(cfg, spec, cases)


def _pairs(cfg: RunConfig, prepared: Prepared, pool: RolloutPool, policy: str) -> Mapping[str, BehaviorPair]:
    """All pairs of a policy at version 0: from the cached label set if there is one, else from the engines."""
    key = label_set_key(policy, chain(prepared.train, prepared.test), cfg.rollout)
    pairs = load_pairs(prepared.cache_uri, key)
    if pairs is None:
        ids = chain(prepared.train.case_ids, prepared.test.case_ids)
        parts = iter(lambda: list(islice(ids, cfg.rollout.group_size * GROUPS_AT_ONCE)), [])
        pairs = PairTable.build(pair for part in parts for pair in pool.label_now(part, Serving()))
        save_pairs(prepared.cache_uri, key, pairs)
    return pairs.by_id


def _second_pairs(cfg: RunConfig, prepared: Prepared, cases: Sequence[Any]) -> Mapping[str, BehaviorPair] | None:
    """The second policy's pairs for mixed supervision, made by an engine that is closed afterwards."""
    name = cfg.supervision.second_policy
    if name is None or prepared.second_id is None:
        return None
    plain = override(cfg, {"rollout.num_actors": 1, **PLAIN})
    pool = start_pool(plain, name, prepared, 1, cases)
    pairs = _pairs(cfg, prepared, pool, prepared.second_id)
    pool.close()
    return pairs


def _reference_task(cfg: RunConfig) -> Any:
    """build_reference as a Ray task with the resources of one training worker."""

    def build(policy: str, cases: CaseTable, cache_uri: str, dtype: str, budget: int) -> str:
        import torch

        from introspect_ray.training.reference import build_reference

        torch.set_num_threads(cfg.train.threads)
        return build_reference(local_policy(policy), cases, cache_uri, dtype, budget, cfg.train.attention)

    return ray.remote(num_cpus=cfg.train.num_cpus, num_gpus=trainer_gpus(cfg))(build)
