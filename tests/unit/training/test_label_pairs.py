"""The behaviour pairs that the learner computes are those of an engine on the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from learner_helpers import (
    assert_same_pairs,
    make_cases,
    make_config,
    make_labels,
    make_pairs,
    organism_cases,
    pair_logprobs,
    save_model,
    weight_update,
)

from introspect_ray.engines import make_engine
from introspect_ray.policy import BUNDLED
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

POLICY = str(BUNDLED["organism"])


@pytest.mark.parametrize("budget", [2048, 100])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_learner_and_engine_agree_before_and_after_training(method: str, budget: int, tmp_path: Path) -> None:
    """With the small budget, the cases need several forwards. The last case is there twice."""
    cfg = make_config(
        method=method,
        lora_rank=4,
        rollout={"engine": "transformers"},
        train={"token_budget": budget},
    )
    train = organism_cases(20)
    reference = build_reference(POLICY, train, None, str(tmp_path))
    learner = Learner(cfg, POLICY, reference, {case.case_id: case for case in train})
    cases = [*train, train[3]]
    before = learner.label_pairs(cases, 0)
    for _ in range(4):
        learner.step(make_labels(train), make_pairs(train))
    engine = make_engine(cfg.rollout, POLICY, max_model_len=256, method=method, lora_rank=4)
    assert_same_pairs(before, engine.label_pairs(cases))
    engine.load_weights(weight_update(learner, 4, cases[0]))
    after = learner.label_pairs(cases, 4)
    assert_same_pairs(after, engine.label_pairs(cases))
    assert after[-1] == after[3]
    moved = [abs(a - b) for p, q in zip(before, after) for a, b in zip(pair_logprobs(p), pair_logprobs(q), strict=True)]
    assert max(moved) > 0.1, "training did not change the answers"
    assert learner.label_pairs([], 4) == []


def test_off_format_is_judged_over_the_full_vocabulary(tmp_path: Path) -> None:
    """A random policy prefers some of its 61 tokens to the four labels."""
    cases = make_cases(80)
    policy = save_model(tmp_path / "model")
    cfg = make_config(rollout={"engine": "transformers"})
    reference = build_reference(policy, cases, None, str(tmp_path))
    pairs = Learner(cfg, policy, reference, {case.case_id: case for case in cases}).label_pairs(cases, 0)
    assert_same_pairs(pairs, make_engine(cfg.rollout, policy, max_model_len=64).label_pairs(cases))
    assert {(p.cued_off_format, p.ablated_off_format) for p in pairs} >= {(True, False), (False, True)}
