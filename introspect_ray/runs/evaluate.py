"""Scores of a given policy against M0 and other policies, by engines of their own; no training."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import Serving
from introspect_ray.config import RunConfig, override
from introspect_ray.config.compatibility import reference_policy
from introspect_ray.labels.reading import RAW
from introspect_ray.policy import is_adapter, merge_adapter
from introspect_ray.runs.evaluated import Behavior, Said, behavior_of, evaluated_cases, write_cases
from introspect_ray.runs.policy_cases import PolicyCases
from introspect_ray.runs.preflight import Prepared
from introspect_ray.runs.setup import PLAIN, explain, reading_of, start_pool
from introspect_ray.scores.evaluated_cases import AGAINST, M0, POLICY, REFERENCE
from introspect_ray.scores.evaluation import against_scores, evaluate
from introspect_ray.scores.evaluation_table import EVALUATED
from introspect_ray.storage import Store, open_store


def evaluate_policies(cfg: RunConfig, prepared: Prepared, folder: str | None, store: Store) -> dict[str, Any]:
    """Scores of eval.policy (or adapter) on the held-out cases; each policy is served by a pool of its own.

    folder: eval.policy on this machine. store: of the results; the table of evaluated cases is written to it. Returns
    the scores of scores.evaluation.evaluate with M0 = cfg.policy (or reference_policy), and "against": the explanations
    scored against each policy of eval.against (A→B).
    """
    reference = reference_policy(cfg)
    # The tokenizer of eval.policy is that of its folder here; an adapter has M0's.
    own = cfg.policy if folder is None or is_adapter(folder) else folder
    with _served(cfg, prepared, folder) as trained:
        names = {M0: cfg.policy, **({REFERENCE: reference} if reference else {}), POLICY: trained}
        names |= {f"{AGAINST}{policy}": policy for policy in cfg.eval.against}
        orig, reading = reference or cfg.policy, RAW
        behaviors: dict[str, Behavior] = {}
        explanations: list[Said] = []
        for policy in dict.fromkeys([orig, *names.values()]):  # orig first: the others are read by its calibration
            tokens = prepared.tokens_of(own if policy == trained else policy)
            with _pool(cfg, policy, tokens) as pool:
                if policy == orig and cfg.task.calibration != "none":
                    train = pool.label_now(tokens.train.case_ids, Serving())
                    reading = reading_of(cfg, prepared, {pair.case_id: pair for pair in train})
                answered = reading.pairs(pool.label_now(tokens.test.case_ids, Serving()), prepared.test.labels)
                behaviors[policy] = behavior_of(answered, tokens.tokenizer)
                if policy == trained:
                    explanations = explain(pool, tokens, Serving())
    by_name = {name: behaviors[policy] for name, policy in names.items()}
    cases = write_cases(store, EVALUATED, evaluated_cases(prepared.test, by_name, explanations))
    return {
        "base": cfg.policy,
        "cases": len(cases),
        "calibration": reading.summary,
        **evaluate(cases),
        "against": against_scores(cases),
    }


@contextmanager
def _pool(cfg: RunConfig, policy: str, tokens: PolicyCases) -> Iterator[RolloutPool]:
    """A pool that serves one policy. tokens: the cases as it reads them."""
    pool = start_pool(override(cfg, PLAIN), policy, tokens, 1, [ray.put(tokens.train), ray.put(tokens.test)])
    yield pool
    pool.close()


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
