"""Scores of a given policy against M0 and other policies, by engines of their own; no training."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from introspect_ray.actors.rollout import Serving
from introspect_ray.config import RunConfig, override
from introspect_ray.policy import is_adapter, merge_adapter
from introspect_ray.records import BehaviorPair, Explanation
from introspect_ray.runs.preflight import Prepared
from introspect_ray.runs.setup import PLAIN, explain, start_pool
from introspect_ray.scores.evaluation import evaluate
from introspect_ray.scores.metrics import explanation_scores
from introspect_ray.storage import open_store


def evaluate_policies(cfg: RunConfig, prepared: Prepared, folder: str | None) -> dict[str, Any]:
    """Scores of eval.policy (or adapter) on the held-out cases; each policy is served by a pool of its own.

    folder: eval.policy on this machine. Returns the scores of scores.evaluation.evaluate with M0 = cfg.policy, and
    "against": the explanations scored against each policy of eval.against (A→B).
    """
    ids = prepared.test.case_ids
    cases = [ray.put(prepared.test)]
    pairs: dict[str, list[BehaviorPair]] = {}
    predicted: list[Explanation | None] = []
    judging = None  # made with the first pool
    with _served(cfg, prepared, folder) as trained:
        for policy in dict.fromkeys([cfg.policy, *cfg.eval.against, trained]):
            pool = start_pool(override(cfg, PLAIN), policy, prepared, 1, cases, judging)
            judging = pool.judging
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
    """The policy to evaluate, by a name that every node can resolve. An adapter is merged into the cache meanwhile."""
    if folder is None or not is_adapter(folder):
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
