"""Prompts longer than one forward of the engine, run by test_vllm_engine.py in a process of their own."""

from __future__ import annotations

import pytest
from engine_tiny import make_cases, reference_logprobs, save_policy, state
from vllm_engine_checks import ROLLOUT, Served, assert_serves

from introspect_ray.engines import make_engine
from introspect_ray.engines.protocol import PromptTokens

CHUNK, BLOCK = 256, 32
LONG = make_cases(3, length=590)  # stems of 590, 591, 592 tokens; x has 7 more, x∖C 3: three chunks each


class TestChunks(Served):
    """A forward of 256 tokens at most, prompts of about 600."""

    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls, tmp_path_factory):
        return save_policy(tmp_path_factory.mktemp("policy"), positions=1024)

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy):
        rollout = ROLLOUT.model_copy(update={"max_batched_tokens": CHUNK})
        engine = make_engine(rollout, policy, max_model_len=640, method="full", lora_rank=4, seed=0)
        yield engine
        engine.close()

    def test_the_forward_never_holds_more_than_a_chunk(self, engine, monkeypatch):
        """593 + 597 tokens of the first case, less the 18 blocks of 32 that x∖C shares, are three forwards or more."""
        core = engine._engine.engine_core.engine_core
        inner, scheduled = core.scheduler.schedule, []

        def schedule(*args, **kwargs):
            out = inner(*args, **kwargs)
            scheduled.append(out.total_num_scheduled_tokens)
            return out

        monkeypatch.setattr(core.scheduler, "schedule", schedule)
        engine.label_pairs(LONG[:1])
        assert sum(scheduled) == 597 + 593 - 18 * BLOCK
        assert max(scheduled) == CHUNK and scheduled[:2] == [CHUNK, CHUNK]

    def test_labels_are_those_of_one_forward_and_the_prefix_is_still_shared(self, engine, policy):
        before = engine.prompt_tokens
        assert_serves(engine, LONG, lambda prompts: reference_logprobs(policy, state(policy), prompts))
        given = sum(len(case.prompt) + len(case.ablated) for case in LONG)
        assert engine.prompt_tokens - before == PromptTokens(given, 3 * 18 * BLOCK)  # 590 // 32 blocks a case
