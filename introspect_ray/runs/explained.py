"""What a served policy does and says on the held-out cases, explanations read as eval.decode says."""

from __future__ import annotations

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import Serving
from introspect_ray.config import RunConfig
from introspect_ray.labels.explanation_sets import explanation_set_key, load_explanations, save_explanations
from introspect_ray.records import BehaviorPair
from introspect_ray.runs.evaluated import Said, said
from introspect_ray.runs.policy_cases import PolicyCases
from introspect_ray.runs.preflight import Prepared


def explain(pool: RolloutPool, tokens: PolicyCases, serving: Serving) -> list[Said]:
    """The served policy's explanations of the test cases. tokens: the cases as it reads them."""
    generated = pool.explain_now(tokens.test.case_ids, tokens.max_explanation_tokens, serving)
    return said(generated, tokens.test, tokens.tokenizer)


def assess(pool: RolloutPool, tokens: PolicyCases, serving: Serving) -> tuple[list[BehaviorPair], list[Said]]:
    """The pairs of the test cases as the engines read them, and their explanations. Raises as RolloutPool.label_now."""
    pairs, generated = pool.assess_now(tokens.test.case_ids, tokens.max_explanation_tokens, serving)
    return pairs, said(generated, tokens.test, tokens.tokenizer)


def kept_explanations(cfg: RunConfig, prepared: Prepared) -> list[Said] | None:
    """M0's explanations of the test cases, if the cache has them."""
    tokens = prepared.tokens_of(cfg.policy)
    kept = load_explanations(prepared.cache_uri, _key(cfg, prepared))
    return None if kept is None else said(kept, tokens.test, tokens.tokenizer)


def explain_m0(cfg: RunConfig, prepared: Prepared, pool: RolloutPool) -> list[Said]:
    """M0's explanations of the test cases: from the cache, else from a pool that serves M0, and into the cache."""
    kept = kept_explanations(cfg, prepared)
    if kept is not None:
        return kept
    tokens = prepared.tokens_of(cfg.policy)
    generated = pool.explain_now(tokens.test.case_ids, tokens.max_explanation_tokens, Serving())
    save_explanations(prepared.cache_uri, _key(cfg, prepared), generated)
    return said(generated, tokens.test, tokens.tokenizer)


def _key(cfg: RunConfig, prepared: Prepared) -> str:
    tokens = prepared.tokens_of(cfg.policy)
    most = tokens.max_explanation_tokens if cfg.eval.decode == "free" else None
    key = explanation_set_key(prepared.policy_id, tokens.test, cfg.rollout, most)
    return key + "-deterministic" * cfg.deterministic
