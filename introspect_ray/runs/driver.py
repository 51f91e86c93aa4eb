"""One training run from the driver's side: M0's data, the Ray Train job, evaluation, the summary."""

from __future__ import annotations

import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ray

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.relabeler import RelabelerActor
from introspect_ray.actors.rollout import EngineSpec, Exported, Serving
from introspect_ray.actors.status import StatusBoardActor
from introspect_ray.actors.trainer import WorkerSpec
from introspect_ray.actors.weight_sync import probe_case
from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import decode_explanation
from introspect_ray.config import RunConfig, override
from introspect_ray.config.compatibility import trainer_gpus, weight_transfer
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.labels.rules import Sources
from introspect_ray.labels.store import label_set_key, load_pairs, save_pairs
from introspect_ray.policy import is_adapter, local_policy, merge_adapter
from introspect_ray.records import BehaviorPair, Explanation
from introspect_ray.runs.cluster import on_this_node
from introspect_ray.runs.monitor import Monitor
from introspect_ray.runs.preflight import Prepared, run_identity
from introspect_ray.runs.recovery import train_on
from introspect_ray.runs.results import missing_rows, numbers_of, run_summary, step_rows, track_results
from introspect_ray.scores.evaluation import details, evaluate
from introspect_ray.scores.metrics import Finding, collapse, explanation_scores
from introspect_ray.storage import open_store
from introspect_ray.storage.tracker import Tracker

GROUPS_AT_ONCE = 256  # of M0's labels: so many wait for an engine or for being put into the table
_PLAIN = {"method": "full", "train.reference": "cache"}  # engines that only ever serve a whole policy


@dataclass(frozen=True)
class Base:
    """What all trials of a sweep share: engines, M0's labels, its reference cache. Picklable."""

    prepared: Prepared
    pool: RolloutPool
    status: Any
    reference_path: str | None  # None: a live reference
    m0: Any  # ref of Mapping[case id, BehaviorPair], training and test cases
    m0_test: list[BehaviorPair]
    m0_explanations: list[Explanation | None]  # untrained, on the test cases
    second: Mapping[str, BehaviorPair] | None
    train: Any  # ref of the training cases, a CaseTable
    prefix_hit_rate: float | None  # of M0's labelling; None where all its labels were kept from before
    seconds: dict[str, float]  # "setup", "eval"


def start_base(cfg: RunConfig, prepared: Prepared, *, lora_rank: int | None = None) -> Base:
    """Start the pool, label all cases with M0 and cache its reference distribution (once a sweep)."""
    began = time.perf_counter()
    train, test = ray.put(prepared.train), ray.put(prepared.test)
    cached = cfg.train.reference == "cache"
    reference = (
        _reference_task(cfg).remote(cfg.policy, train, prepared.cache_uri, cfg.train.dtype, cfg.train.token_budget)
        if cached
        else None
    )
    pool = _pool(cfg, cfg.policy, prepared, lora_rank or cfg.lora_rank, [train, test])
    status = StatusBoardActor.options(scheduling_strategy=on_this_node()).remote()
    pool.wait()
    ready = time.perf_counter()
    m0 = _pairs(cfg, prepared, pool, prepared.policy_id)
    hit_rate = pool.prompt_tokens.hit_rate
    m0_test = [m0[case_id] for case_id in prepared.test.case_ids]
    explanations = explain(pool, prepared, Serving())
    second = _second_pairs(cfg, prepared, [train, test])
    evaluated = time.perf_counter()
    return Base(
        prepared=prepared,
        pool=pool,
        status=status,
        reference_path=ray.get(reference) if cached else None,
        m0=ray.put(m0),
        m0_test=m0_test,
        m0_explanations=explanations,
        second=second,
        train=train,
        prefix_hit_rate=hit_rate,
        seconds={"setup": ready - began, "eval": evaluated - ready},
    )


def train_once(
    cfg: RunConfig, base: Base, tracker: Tracker, *, run_name: str, on_row: Callable[[dict], None] | None = None
) -> dict[str, Any]:
    """Train, evaluate on the held-out cases, write <output_dir>/summary.json and track it; returns the summary."""
    began = time.perf_counter()
    tracker.log_metrics({"before": _before(base)}, 0)
    store = open_store(cfg.output_dir)
    store.write_json("run.json", cfg.model_dump(mode="json"))  # a trial's own, for audit and replay
    identity = run_identity(cfg, base.prepared)

    def spec(relabeler: Any, checkpoint: str | None) -> WorkerSpec:
        return WorkerSpec(
            cfg=cfg,
            run_name=run_name,
            policy=cfg.policy,
            reference_path=base.reference_path,
            train=base.train,
            m0=base.m0,
            pool=base.pool,
            relabeler=relabeler,
            status=base.status,
            identity=identity,
            checkpoint=checkpoint,
        )

    with Monitor(base.status, run_name, tracker, on_row, cfg.train.checkpoint_every) as monitor:
        labelled, done = train_on(cfg, identity, lambda: _relabeler(cfg, base), spec, base.status, run_name)
    trained = time.perf_counter()
    # An engine that dies from here on finds the trained policy where the workers left it.
    exported = Exported(store.join("policy"), probe_case(base.prepared.train[0]))
    serving = Serving(cfg.steps, done.served, exported)
    pairs = base.pool.label_now(base.prepared.test.case_ids, serving)
    predicted = explain(base.pool, base.prepared, serving)
    scores = evaluate(pairs, base.m0_test, predicted)
    finished = time.perf_counter()
    seconds = {"train": trained - began, "eval": finished - trained}
    tracker.flush()
    rows = step_rows(store)
    cases = (len(base.prepared.train), len(base.prepared.test))
    out = run_summary(cfg, cases, scores, {**labelled, **done.seconds}, rows, base.seconds, seconds)
    timing = {part: done.seconds[part] for part in ("learner", "export")}  # of the summary's set-up
    timing |= {"ray_train": seconds["train"] - sum(done.seconds.values()), "eval": seconds["eval"]}
    extra = details(base.m0_test, pairs, predicted, (used.labels for used in base.prepared.test.answers))
    extra["findings"] += _warned(missing_rows(rows, cfg.steps))  # the output of a sweep's trial is not seen
    store.write_json("details.json", {**extra, "timing_s": timing})
    store.write_json("summary.json", out)
    monitor.raise_failure()  # a tracker that failed on the way: after the results are safe
    track_results(tracker, store, out, rows)
    return out


def _before(base: Base) -> dict[str, Any]:
    """M0's metrics, and what the collapse check found."""
    one_sided = {finding.name: finding.value for finding in findings(base)}
    return {**numbers_of(untrained_scores(base)), "collapse": one_sided, "prefix_hit_rate": base.prefix_hit_rate}


def _warned(lines: list[str]) -> list[str]:
    """The same, once they are printed."""
    for line in lines:
        print(f"warning: {line}", file=sys.stderr, flush=True)
    return lines


def evaluate_policies(cfg: RunConfig, prepared: Prepared, folder: str | None) -> dict[str, Any]:
    """Scores of eval.policy (or adapter) on the held-out cases, an engine pool a policy.

    `folder` is eval.policy on this machine. Returns "explanation": {"orig": against M0 = cfg.policy, "self": against
    itself}; "against": the same by policy of eval.against (A→B).
    """
    ids = prepared.test.case_ids
    cases = [ray.put(prepared.test)]
    pairs: dict[str, list[BehaviorPair]] = {}
    predicted: list[Explanation | None] = []
    with _served(cfg, prepared, folder) as trained:
        for policy in dict.fromkeys([cfg.policy, *cfg.eval.against, trained]):
            pool = _pool(override(cfg, _PLAIN), policy, prepared, 1, cases)
            pairs[policy] = pool.label_now(ids, Serving())
            if policy == trained:
                predicted = explain(pool, prepared, Serving())
            pool.close()
    truths = {policy: [pair.explanation for pair in pairs[policy]] for policy in cfg.eval.against}
    return {
        "base": cfg.policy,
        "cases": len(ids),
        **evaluate(pairs[trained], pairs[cfg.policy], predicted),
        "against": {policy: explanation_scores(predicted, truth) for policy, truth in truths.items()},
    }


@contextmanager
def _served(cfg: RunConfig, prepared: Prepared, folder: str | None) -> Iterator[str]:
    """The policy to evaluate by a name that every node can resolve; a merged adapter lies below the cache meanwhile."""
    if not is_adapter(folder):
        yield cfg.eval.policy or cfg.policy
        return
    store, name = open_store(prepared.cache_uri), f"evaluated/{uuid.uuid4().hex}"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            local = store.local_path(name)
            merge_adapter(prepared.policy_path, folder, str(local or scratch))
            if local is None:
                store.upload_dir(Path(scratch), name)
        yield store.join(name)
    finally:
        store.delete_prefix(name)


def explain(pool: RolloutPool, prepared: Prepared, serving: Serving) -> list[Explanation | None]:
    """The served policy's explanations of the test cases, generated greedily and parsed; None: unparseable."""
    tokens = pool.explain_now(prepared.test.case_ids, prepared.max_explanation_tokens, serving)
    return [
        decode_explanation(ids, prepared.tokenizer, case.labels)
        for ids, case in zip(tokens, prepared.test, strict=True)
    ]


def untrained_scores(base: Base) -> dict[str, Any]:
    """Metrics of M0 itself, before training: Self and Orig coincide."""
    return evaluate(base.m0_test, base.m0_test, base.m0_explanations)


def findings(base: Base) -> list[Finding]:
    """Named weaknesses of M0 as a subject (paper's limitation: collapsed labels), with their numbers."""
    return collapse(base.m0_test)


def _pool(cfg: RunConfig, policy: str, prepared: Prepared, lora_rank: int, cases: Sequence[Any]) -> RolloutPool:
    """A pool that answers for `cases`, refs of CaseTables."""
    cfg = override(cfg, {"rollout.weight_transfer": weight_transfer(cfg)})  # the engines need to know "auto"
    spec = EngineSpec(policy, prepared.max_model_len, cfg.method, lora_rank, cfg.seed)
    return RolloutPool(cfg, spec, cases)


def _pairs(cfg: RunConfig, prepared: Prepared, pool: RolloutPool, policy: str) -> Mapping[str, BehaviorPair]:
    """All pairs of a policy at version 0: from the content-addressed label set, else from the engines."""
    key = label_set_key(policy, chain(prepared.train, prepared.test), cfg.rollout)
    pairs = load_pairs(prepared.cache_uri, key)
    if pairs is None:
        ids = chain(prepared.train.case_ids, prepared.test.case_ids)
        parts = iter(lambda: list(islice(ids, cfg.rollout.group_size * GROUPS_AT_ONCE)), [])
        pairs = PairTable.build(pair for part in parts for pair in pool.label_now(part, Serving()))
        save_pairs(prepared.cache_uri, key, pairs)
    return pairs.by_id


def _second_pairs(cfg: RunConfig, prepared: Prepared, cases: Sequence[Any]) -> Mapping[str, BehaviorPair] | None:
    """E of the second policy for mixed supervision, made by an engine of its own that is closed again."""
    if prepared.second_path is None:
        return None
    plain = override(cfg, {"rollout.num_actors": 1, **_PLAIN})
    pool = _pool(plain, cfg.supervision.second_policy, prepared, 1, cases)
    pairs = _pairs(cfg, prepared, pool, prepared.second_id)
    pool.close()
    return pairs


def _reference_task(cfg: RunConfig) -> Any:
    """build_reference as a Ray task with the resources of one training worker."""

    def build(policy: str, cases: CaseTable, cache_uri: str, dtype: str, budget: int) -> str:
        import torch

        from introspect_ray.train.reference import build_reference

        torch.set_num_threads(cfg.train.threads)
        return build_reference(local_policy(policy), cases, cache_uri, dtype, budget, cfg.train.attention)

    return ray.remote(num_cpus=cfg.train.num_cpus, num_gpus=trainer_gpus(cfg))(build)


def _relabeler(cfg: RunConfig, base: Base) -> Any:
    sources = Sources(
        labels=base.prepared.train.labels,
        policy=cfg.policy,
        m0=ray.get(base.m0),
        second_policy=cfg.supervision.second_policy,
        second=base.second,
    )
    labels = f"{cfg.output_dir.rstrip('/')}/labels"
    actor = RelabelerActor.options(scheduling_strategy=on_this_node())
    return actor.remote(cfg, sources, labels, cfg.train.num_workers, base.pool)
