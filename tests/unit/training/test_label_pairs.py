"""The behaviour pairs that the learner computes are those of an engine on the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learner_helpers import (
    WORDS,
    assert_same_pairs,
    make_cases,
    make_config,
    make_labels,
    make_model,
    make_pairs,
    organism_cases,
    pair_logprobs,
    save_model,
    weight_update,
    with_free_text,
    with_words,
)

from introspect_ray.cases.answers import probe_tokens
from introspect_ray.cases.probes import case_item
from introspect_ray.engines import make_engine
from introspect_ray.errors import UserError
from introspect_ray.policy import BUNDLED, load_model
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


def test_labels_of_several_tokens_are_read_as_restricted_greedy_decoding(tmp_path: Path) -> None:
    """Expected from plain forwards, one per prefix: NTA is 14 15, YTA 16 15, ESH 16 17 18.

    The policy's logits of 14 to 18 are enlarged, so that some answers need no restriction.
    """
    cases, policy = [with_words(case) for case in make_cases(60)], str(tmp_path / "model")
    model = make_model(tied=False)
    with torch.no_grad():
        model.lm_head.weight[14:19] *= 2
    model.save_pretrained(policy)
    reference = build_reference(policy, cases, make_pairs(cases), str(tmp_path))
    pairs = Learner(make_config(), policy, reference, {c.case_id: c for c in cases}).label_pairs(cases, 3)

    def logprobs(prompt: tuple[int, ...]) -> list[list[float]]:
        """After the prompt, 14, 16 and 16 17; padding on the right is after what is read."""
        prefixes = ((), (14,), (16,), (16, 17))
        tokens = torch.tensor([[*prompt, *prefix, *[0] * (2 - len(prefix))] for prefix in prefixes])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits
        return [row[len(prompt) + len(p) - 1].log_softmax(-1).tolist() for row, p in zip(logits, prefixes, strict=True)]

    off_format = []
    for case, pair in zip(cases, pairs, strict=True):
        for side, prompt in (("cued", case.prompt), ("ablated", case.ablated)):
            root, n, y, e = logprobs(prompt)
            totals = {"NTA": root[14] + n[15], "YTA": root[16] + y[15], "ESH": root[16] + y[17] + e[18]}
            answer = "NTA" if root[14] >= root[16] else "YTA" if y[15] >= y[17] else "ESH"
            walk = {"NTA": [(root, (14, 16)), (n, (15,))], "YTA": [(root, (14, 16)), (y, (15, 17))]}
            walk["ESH"] = [*walk["YTA"], (e, (18,))]
            off = any(node.index(max(node)) not in children for node, children in walk[answer])
            assert getattr(pair, side) == answer
            assert getattr(pair, f"{side}_logprobs") == pytest.approx(list(totals.values()), abs=1e-4)
            assert getattr(pair, f"{side}_off_format") == off
            off_format.append(off)
    assert {pair.cued for pair in pairs} == set(WORDS) and 0 < sum(off_format) < len(off_format)
    assert {pair.weight_version for pair in pairs} == {3}


def test_free_text_is_left_to_the_engines(tmp_path: Path) -> None:
    """But a delivery can be verified: the probe reads the distinct tokens of x at the ends of x and x∖C."""
    letters, free = make_cases(1)[0], with_free_text(make_cases(2)[1])
    m0, policy = make_pairs([letters, free]), save_model(tmp_path / "model")
    reference = build_reference(policy, [letters, free], m0, str(tmp_path))
    learner = Learner(make_config(), policy, reference, {case.case_id: case for case in (letters, free)})
    message = r"cannot write the responses that case 'case-1' \(1 of 2\) asks for: set rollout.engine=vllm"
    with pytest.raises(UserError, match=message):
        learner.label_pairs([letters, free], 0)
    model, tokens = load_model(policy, torch.float32), list(probe_tokens(free))
    with torch.no_grad():
        expected = [
            model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[tokens].tolist()
            for prompt in (free.prompt, free.ablated)
        ]
    assert learner.probe((case_item(free),)) == pytest.approx(expected[0] + expected[1], abs=1e-4)


def test_off_format_is_judged_over_the_full_vocabulary(tmp_path: Path) -> None:
    """A random policy prefers some of its 61 tokens to the four labels."""
    cases = make_cases(80)
    policy = save_model(tmp_path / "model")
    cfg = make_config(rollout={"engine": "transformers"})
    reference = build_reference(policy, cases, None, str(tmp_path))
    pairs = Learner(cfg, policy, reference, {case.case_id: case for case in cases}).label_pairs(cases, 0)
    assert_same_pairs(pairs, make_engine(cfg.rollout, policy, max_model_len=64).label_pairs(cases))
    assert {(p.cued_off_format, p.ablated_off_format) for p in pairs} >= {(True, False), (False, True)}
