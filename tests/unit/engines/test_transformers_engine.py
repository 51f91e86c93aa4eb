"""TransformersEngine against single unpadded forwards of the weights that it should serve."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_tiny import (
    assert_explains,
    assert_reads_tries,
    assert_serves,
    explained_cases,
    label_ids,
    make_cases,
    make_trie_cases,
    peft_adapter,
    reference_greedy,
    reference_logprobs,
    save_policy,
    state,
)
from learner_helpers import organism_cases

from introspect_ray.cases.probes import case_item
from introspect_ray.config import RolloutConfig
from introspect_ray.engines import make_engine
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.policy import local_policy

CASES = make_cases(9)
PROBE = (case_item(CASES[0]),)
ROLLOUT = RolloutConfig(engine="transformers")


def start(policy, method="full"):
    return make_engine(ROLLOUT, policy, max_model_len=128, method=method, lora_rank=4)


@pytest.fixture(params=[("qwen3", True), ("llama", False)], ids=str)
def policy(request, tmp_path):
    return save_policy(tmp_path, *request.param)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_full_update_serves_the_new_weights_and_back(tmp_path, family, tied):
    """Prompts of 43 to 53 tokens need left padding. After a second update the old answers are back, bit for bit."""
    policy = save_policy(tmp_path, family, tied)
    engine = start(policy)
    old, new = state(policy), state(policy, seed=1, scale=0.1)
    before = assert_serves(engine, CASES, lambda prompts: reference_logprobs(policy, old, prompts))
    delivery = engine.load_weights(WeightUpdate(1, "full", new, PROBE))
    after = assert_serves(engine, CASES, lambda prompts: reference_logprobs(policy, new, prompts))
    assert delivery.probe == pytest.approx(after[0].cued_logprobs + after[0].ablated_logprobs, abs=1e-4)
    assert (delivery.version, delivery.fingerprints) == (1, fingerprints(new))
    assert delivery.bytes == sum(t.numel() * 4 for t in new.values())
    assert before[0].cued_logprobs[0] != pytest.approx(after[0].cued_logprobs[0], abs=0.05)
    engine.load_weights(WeightUpdate(2, "full", old, PROBE))
    assert [replace(p, weight_version=0) for p in engine.label_pairs(CASES)] == before


def test_generate_is_plain_greedy(policy):
    prompts = [case.prompt for case in make_cases(12)]
    want = reference_greedy(policy, state(policy), prompts, 24)
    assert start(policy).generate(prompts, 24) == want
    assert {len(tokens) == 24 for tokens in want} == {True, False}  # some end before 24 tokens, some do not


def test_labels_of_several_tokens_are_sums_over_the_trie(policy):
    """Label sets of one, two and three tokens in one call."""
    assert_reads_tries(start(policy), make_trie_cases(9), policy, state(policy))


def test_one_token_labels_are_read_as_ever_beside_longer_ones(policy):
    """The requests of one-token labels are x and x∖C alone, in order."""
    engine, asked = start(policy), []
    inner = engine._next_tokens
    engine._next_tokens = lambda prompts, ids, keep: asked.append((prompts, ids)) or inner(prompts, ids, keep)
    engine.label_pairs(CASES)
    assert asked[0][0] == [prompt for case in CASES for prompt in (case.prompt, case.ablated)]
    assert asked[0][1] == [tuple(label_ids(case)) for case in CASES for _ in range(2)]


def test_explanations_are_greedy_among_the_valid_ones(policy):
    """Alone, and together with the pairs, which stay as they are."""
    engine, cases = start(policy), explained_cases(6)
    pairs, said = engine.label_and_explain(cases)
    assert_explains(said, cases, policy, state(policy))
    assert len(set(said)) > 1
    assert engine.explain(cases) == said and engine.label_pairs(cases) == pairs


def test_where_free_decoding_keeps_to_the_form_it_says_the_same():
    """The organism always does."""
    cases = organism_cases(24)
    engine = start(local_policy("organism"))
    assert engine.explain(cases) == engine.generate([case.question for case in cases], 12)


def test_a_label_must_fit_behind_its_prompt(tmp_path):
    """128 tokens in all: 126 of the prompt and the two of a label fit, 127 do not."""
    engine = start(save_policy(tmp_path))
    case = make_trie_cases(1)[0]
    engine.label_pairs([replace(case, prompt=(20,) * 126)])
    with pytest.raises(ValueError, match="128 tokens"):
        engine.label_pairs([replace(case, prompt=(20,) * 127)])


def test_free_text_is_plain_greedy_up_to_each_cases_length(policy):
    """Lengths 3 and 24 in one call; some responses end by themselves, some are cut."""
    cases = [replace(c, label_tokens=(), max_response=(3, 24)[i % 2]) for i, c in enumerate(make_cases(12))]
    responses = start(policy).respond(cases)
    for length in (3, 24):
        rows = [row for row, case in enumerate(cases) if case.max_response == length]
        prompts = [prompt for row in rows for prompt in (cases[row].prompt, cases[row].ablated)]
        want = reference_greedy(policy, state(policy), prompts, length)
        assert [response for row in rows for response in responses[row]] == want
    assert {len(r[0]) == c.max_response for r, c in zip(responses, cases, strict=True)} == {True, False}


@pytest.mark.parametrize("kind", ["several tokens", "free text"])
def test_the_probe_of_other_answers(tmp_path, kind):
    """Several tokens: the root's children 10 and 11. Free text: the first eight distinct tokens of x."""
    policy = save_policy(tmp_path)
    case, new = make_trie_cases(2)[1], state(policy, seed=1, scale=0.1)
    want = [10, 11]
    if kind == "free text":
        case = replace(case, prompt=(20, 21, 20, *range(22, 40)), label_tokens=(), max_response=4)
        want = list(range(20, 28))
    delivery = start(policy).load_weights(WeightUpdate(1, "full", new, (case_item(case),)))
    rows = reference_logprobs(policy, new, [case.prompt, case.ablated])
    assert delivery.probe == pytest.approx(rows[:, want].flatten().tolist(), abs=1e-4)


def test_each_adapter_version_equals_the_peft_forward(policy):
    engine = start(policy, method="lora")
    assert_serves(engine, CASES, lambda prompts: reference_logprobs(policy, state(policy), prompts))
    pairs = []
    for version, seed in enumerate((1, 2, 1), start=1):
        tensors, config, expected = peft_adapter(policy, seed, rank=4)
        delivery = engine.load_weights(WeightUpdate(version, "adapter", tensors, PROBE, config))
        assert delivery.bytes < 0.2 * sum(t.numel() * 4 for t in state(policy).values())
        pairs.append([replace(p, weight_version=0) for p in assert_serves(engine, CASES, expected)])
    assert pairs[0] != pairs[1]
    assert pairs[0] == pairs[2]


def test_refused_updates_change_nothing(tmp_path):
    policy = save_policy(tmp_path)
    engine = start(policy)
    before, new = engine.label_pairs(CASES), state(policy, seed=1, scale=0.1)
    del new["lm_head.weight"]
    with pytest.raises(ValueError, match=r"lm_head.weight \[64, 64\] is missing \(send a tied head too"):
        engine.load_weights(WeightUpdate(1, "full", new, PROBE))
    with pytest.raises(ValueError, match=r"kind 'adapter'"):
        engine.load_weights(WeightUpdate(1, "adapter", {}, PROBE, {}))
    assert engine.label_pairs(CASES) == before


def test_a_failed_update_makes_the_engine_unusable(tmp_path, monkeypatch):
    policy = save_policy(tmp_path)
    engine = start(policy)

    def fail(tensors):
        raise OSError("link down")

    monkeypatch.setattr(engine._model, "load_state_dict", fail)
    with pytest.raises(OSError, match="link down"):
        engine.load_weights(WeightUpdate(1, "full", state(policy), PROBE))
    for call in (lambda: engine.label_pairs(CASES), lambda: engine.generate([(20, 21)], 1)):
        with pytest.raises(RuntimeError, match=r"link down.*Replace the engine"):
            call()


def test_closed_engine_raises(tmp_path):
    engine = start(save_policy(tmp_path))
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.label_pairs(CASES)
