"""Explanations by a walk over the valid ones, run by test_vllm_engine.py in a process of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_tiny import assert_explains, explained_cases, state
from vllm_engine_checks import ROLLOUT, Served, full

from introspect_ray.engines import make_engine
from introspect_ray.engines.protocol import PromptTokens
from introspect_ray.engines.walks import cache_parts

CASES = explained_cases(40)  # x of 47 to 53 tokens, q of two more: 32 of x∖C and of q are one block of x
LENGTHS = {True: 3, False: 4}  # tokens up to where the label stands


class TestExplain(Served):
    """A prefix cache that does not hold the prompts of all cases."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy):
        rollout = ROLLOUT.model_copy(update={"kv_cache_bytes": 1 << 20})
        engine = make_engine(rollout, policy, max_model_len=192, method="full", lora_rank=4, seed=0)
        yield engine
        engine.close()

    def test_explanations_are_greedy_among_the_valid_ones(self, engine, policy):
        """Those of the weights now served, whatever the cache held before."""
        said = engine.explain(CASES[:6])
        assert_explains(said, CASES[:6], policy, state(policy))
        moved = state(policy, seed=1, scale=0.1)
        engine.load_weights(full(engine, moved))
        assert_explains(engine.explain(CASES[:6]), CASES[:6], policy, moved)
        engine.load_weights(full(engine, state(policy)))
        assert engine.explain(CASES[:6]) == said

    def test_every_question_finds_x_in_the_cache(self, engine):
        """Also of the last case, though all of them together would have pushed the first ones out."""
        assert len(list(cache_parts(CASES, engine._cache()))) > 1
        before = engine.prompt_tokens
        _, said = engine.label_and_explain(CASES)
        given = sum(len(case.prompt) + len(case.ablated) + 2 * len(case.question) + 1 for case in CASES)
        given += sum(LENGTHS[tokens[1] == 21] for tokens in said)
        assert engine.prompt_tokens - before == PromptTokens(given, 3 * 32 * len(CASES))

    def test_pairs_and_explanations_are_those_of_calls_of_their_own(self, engine):
        """Where the cache holds all prompts the pairs are the same bits, as they are read first."""
        few = CASES[:4]
        pairs, said = engine.label_and_explain(few)
        assert pairs == engine.label_pairs(few) and said == engine.explain(few)

    def test_what_does_not_fit_is_refused_before_the_engine_is_asked(self, engine):
        with pytest.raises(ValueError, match="prompt 1 has 192 tokens"):
            engine.explain([CASES[0], replace(CASES[1], question=(30,) * 191)])
        assert engine.usable
