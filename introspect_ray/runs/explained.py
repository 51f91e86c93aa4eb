"""What a served policy does and says on the held-out cases, explanations read as eval.decode says."""

from __future__ import annotations

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import Serving
from introspect_ray.records import BehaviorPair
from introspect_ray.runs.evaluated import Said, said
from introspect_ray.runs.policy_cases import PolicyCases


def explain(pool: RolloutPool, tokens: PolicyCases, serving: Serving) -> list[Said]:
    """The served policy's explanations of the test cases. tokens: the cases as it reads them."""
    generated = pool.explain_now(tokens.test.case_ids, tokens.max_explanation_tokens, serving)
    return said(generated, tokens.test, tokens.tokenizer)


def assess(pool: RolloutPool, tokens: PolicyCases, serving: Serving) -> tuple[list[BehaviorPair], list[Said]]:
    """The pairs of the test cases as the engines read them, and their explanations. Raises as RolloutPool.label_now."""
    pairs, generated = pool.assess_now(tokens.test.case_ids, tokens.max_explanation_tokens, serving)
    return pairs, said(generated, tokens.test, tokens.tokenizer)
