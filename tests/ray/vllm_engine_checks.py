"""What test_vllm_engine.py runs, one class a child process: only one vLLM engine can live in a process.

The expected numbers come from transformers, one unpadded forward a prompt, on the weights that should be
served: perturb-and-restore alone would pass with a stale output head.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from engine_tiny import (
    TOLERANCE,
    assert_reads_tries,
    assert_serves,
    make_cases,
    make_trie_cases,
    reference_greedy,
    reference_logprobs,
    save_policy,
    state,
)

from introspect_ray.cases.probes import case_item, prompts_of
from introspect_ray.config import RolloutConfig
from introspect_ray.engines import make_engine
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.organism import FOLDER as ORGANISM

ROLLOUT = RolloutConfig(engine="vllm", kv_cache_bytes=8 << 20)
CASES = make_cases(12)
PROBE = (case_item(CASES[0]),)


def start(policy: str, method: str = "full"):
    return make_engine(ROLLOUT, policy, max_model_len=192, method=method, lora_rank=4, seed=0)


def full(engine, tensors, probe=CASES[0]) -> WeightUpdate:
    return WeightUpdate(engine.weight_version + 1, "full", tensors, (case_item(probe),))


def assert_delivery(delivery, update, expected):
    """The receipt names what was sent and what is served: the probe's logprobs after each of its prompts."""
    prompts, asked = prompts_of(update.probe)
    want = torch.cat([row[list(tokens)] for row, tokens in zip(expected(prompts), asked, strict=True)])
    torch.testing.assert_close(torch.tensor(delivery.probe), want, atol=TOLERANCE, rtol=0)
    assert (delivery.version, delivery.fingerprints) == (update.version, fingerprints(update.tensors))
    assert delivery.bytes == sum(t.numel() * t.element_size() for t in update.tensors.values())


class Served:
    """One policy (tiny, tied head) and one engine for a class of tests."""

    method = "full"

    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls, tmp_path_factory):
        return save_policy(tmp_path_factory.mktemp("policy"), tied=True)

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy):
        engine = start(policy, method=cls.method)
        yield engine
        engine.close()


class TestTied(Served):
    """A tied head: vLLM keeps a packed copy of it, which an update of the embedding alone does not reach."""

    def test_labels_are_the_full_softmax_of_the_policy(self, engine, policy):
        assert engine.weight_version == 0
        assert_serves(engine, CASES, lambda prompts: reference_logprobs(policy, state(policy), prompts))

    def test_off_format_is_the_full_vocabulary_argmax(self, engine, policy):
        """By hand: with the argmax t among the labels the answer is in format and t wins; without t it is not."""
        case = CASES[3]
        free = reference_logprobs(policy, state(policy), [case.prompt])[0].argsort(descending=True).tolist()
        names = ("A", "B")
        inside = replace(case, labels=names, label_tokens=((free[5],), (free[0],)))
        outside = replace(case, labels=names, label_tokens=((free[1],), (free[2],)))
        first, second = engine.label_pairs([inside, outside])
        assert (first.cued, first.cued_off_format) == ("B", False)
        assert (second.cued, second.cued_off_format) == ("A", True)

    def test_labels_of_several_tokens_are_sums_over_the_trie(self, engine, policy):
        assert_reads_tries(engine, make_trie_cases(9), policy, state(policy))

    def test_free_text_is_transformers_greedy_up_to_each_cases_length(self, engine, policy):
        cases = [replace(c, label_tokens=(), max_response=(3, 24)[i % 2]) for i, c in enumerate(make_cases(8))]
        for length, served in ((3, engine.respond(cases)[::2]), (24, engine.respond(cases)[1::2])):
            prompts = [p for case in cases if case.max_response == length for p in (case.prompt, case.ablated)]
            want = reference_greedy(policy, state(policy), prompts, length)
            assert [response for pair in served for response in pair] == want

    def test_sync_serves_the_new_weights_and_back(self, engine, policy):
        """Every parameter moves, the tied head with its embedding; the old weights then return bit for bit."""
        before = assert_serves(engine, CASES, lambda prompts: reference_logprobs(policy, state(policy), prompts))
        moved = state(policy, seed=1, scale=0.1)
        update = full(engine, moved)
        assert_delivery(engine.load_weights(update), update, lambda prompts: reference_logprobs(policy, moved, prompts))
        after = assert_serves(engine, CASES, lambda prompts: reference_logprobs(policy, moved, prompts))
        assert max(abs(a.cued_logprobs[0] - b.cued_logprobs[0]) for a, b in zip(before, after, strict=True)) > 0.5
        engine.load_weights(full(engine, state(policy)))
        again = engine.label_pairs(CASES)
        assert [replace(p, weight_version=0) for p in again] == [replace(p, weight_version=0) for p in before]

    def test_only_the_tied_embedding_moves(self, engine, policy):
        moved = state(policy)
        moved["model.embed_tokens.weight"] = moved["model.embed_tokens.weight"].flip(0).clone()
        moved["lm_head.weight"] = moved["model.embed_tokens.weight"]
        engine.load_weights(full(engine, moved))
        assert_serves(engine, CASES, lambda prompts: reference_logprobs(policy, moved, prompts))
        engine.load_weights(full(engine, state(policy)))

    def test_an_update_may_come_in_chunks(self, engine, policy, monkeypatch):
        """One tensor a chunk, in an order that tears layers apart, as large policies do."""
        monkeypatch.setattr("introspect_ray.engines.vllm_engine._CHUNK_BYTES", 1)
        moved = state(policy, seed=6, scale=0.1)
        engine.load_weights(full(engine, dict(sorted(moved.items(), key=lambda item: item[0][::-1]))))
        assert_serves(engine, CASES, lambda prompts: reference_logprobs(policy, moved, prompts))
        engine.load_weights(full(engine, state(policy)))

    def test_prefix_cache_never_serves_an_older_version(self, engine, policy):
        """The same 120-token prompts (three full blocks shared) before and after each of two updates."""
        cases = make_cases(4, length=110, seed=5)
        for seed in (2, 3):
            engine.label_pairs(cases)
            moved = state(policy, seed=seed, scale=0.1)
            engine.load_weights(full(engine, moved, probe=cases[0]))
            assert_serves(engine, cases, lambda prompts, moved=moved: reference_logprobs(policy, moved, prompts))
        assert engine.prompt_tokens.hit_rate > 0.2  # x∖C shares x's blocks in the same batch
        engine.load_weights(full(engine, state(policy)))

    def test_result_depends_on_the_call_alone(self, engine):
        first = engine.label_pairs(CASES)
        engine.label_pairs(CASES[5:6])
        assert engine.label_pairs(CASES) == first

    def test_mismatch_is_refused_and_the_old_version_still_served(self, engine, policy):
        before, version = engine.label_pairs(CASES), engine.weight_version
        good = state(policy, seed=4, scale=0.1)
        norm = "model.norm.weight"
        bad = {
            r"lm_head.weight \[64, 64\] is missing \(send a tied head too": {
                k: v for k, v in good.items() if k != "lm_head.weight"
            },
            rf"{norm} has shape \[65\], the engine's is \[64\]": good | {norm: torch.ones(65)},
            r"model.extra \[1\] is not a tensor of the policy": good | {"model.extra": torch.ones(1)},
        }
        for message, tensors in bad.items():
            with pytest.raises(ValueError, match=message):
                engine.load_weights(full(engine, tensors))
        with pytest.raises(ValueError, match=r"kind 'adapter'.*method='full'"):
            engine.load_weights(WeightUpdate(version + 1, "adapter", {}, PROBE, {}))
        long = replace(CASES[0], prompt=(20,) * 192)
        with pytest.raises(ValueError, match="192 tokens"):
            engine.load_weights(full(engine, good, probe=long))
        assert engine.weight_version == version
        assert engine.label_pairs(CASES) == before

    def test_generate_is_transformers_greedy(self, engine, policy):
        prompts = [case.prompt for case in CASES]
        want = reference_greedy(policy, state(policy), prompts, 40)
        assert engine.generate(prompts, 40) == want
        assert {len(tokens) == 40 for tokens in want} == {True, False}  # some stop at the end of turn, some do not

    def test_prompts_that_do_not_fit_are_named(self, engine):
        for prompt in ((), (20,) * 192):
            with pytest.raises(ValueError, match=f"prompt 0 has {len(prompt)} tokens"):
                engine.generate([prompt], 1)

    def test_a_failed_update_makes_the_engine_unusable(self, engine, policy, monkeypatch):
        """Last: the weights of this engine are undefined from here on."""
        inner = engine._engine.collective_rpc

        def fail(method, **kwargs):
            if method == "finish_weight_update":
                raise OSError("link down")
            return inner(method, **kwargs)

        monkeypatch.setattr(engine._engine, "collective_rpc", fail)
        with pytest.raises(OSError, match="link down"):
            engine.load_weights(full(engine, state(policy)))
        monkeypatch.undo()
        for call in (
            lambda: engine.label_pairs(CASES),
            lambda: engine.generate([CASES[0].prompt], 1),
            lambda: engine.load_weights(full(engine, state(policy))),
        ):
            with pytest.raises(RuntimeError, match=r"link down.*Replace the engine"):
                call()


class TestOrganism(Served):
    """The bundled policy (untied head) on its own cases."""

    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls):
        return str(ORGANISM / "policy")

    @pytest.fixture(scope="class")
    @classmethod
    def cases(cls, policy):
        from transformers import AutoTokenizer

        from introspect_ray.cases.tokenize import tokenize_case
        from introspect_ray.config import TaskConfig
        from introspect_ray.tasks import load_cases

        tokenizer = AutoTokenizer.from_pretrained(policy)
        return [tokenize_case(case, tokenizer) for case in islice(load_cases(TaskConfig())[0], 32)]

    def test_labels_are_the_full_softmax_of_the_policy(self, engine, policy, cases):
        assert_serves(engine, cases, lambda prompts: reference_logprobs(policy, state(policy), prompts))

    def test_sync_serves_the_new_weights_and_back(self, engine, policy, cases):
        before = engine.label_pairs(cases)
        moved = state(policy, seed=1, scale=0.02)
        assert not torch.equal(moved["lm_head.weight"], moved["model.embed_tokens.weight"])
        update = full(engine, moved, probe=cases[0])
        assert_delivery(engine.load_weights(update), update, lambda prompts: reference_logprobs(policy, moved, prompts))
        assert_serves(engine, cases, lambda prompts: reference_logprobs(policy, moved, prompts))
        engine.load_weights(full(engine, state(policy), probe=cases[0]))
        assert [replace(p, weight_version=0) for p in engine.label_pairs(cases)] == before

    def test_an_update_loads_the_bits_that_vllms_own_reload_does(self, engine, policy, cases):
        moved = state(policy, seed=3, scale=0.02)
        engine.load_weights(full(engine, moved, probe=cases[0]))
        ours = engine.label_pairs(cases)
        pairs = []
        for tensors in (state(policy), moved):
            engine._call_workers("reload_weights", {"weights_iterator": iter(tensors.items())})
            pairs.append(engine.label_pairs(cases))
        assert pairs[1] == ours != pairs[0]
        engine.load_weights(full(engine, state(policy), probe=cases[0]))

    def test_generate_is_transformers_greedy(self, engine, policy, cases):
        """Explanations are drawn at random by an untrained policy, and end."""
        prompts = [case.question for case in cases[:8]]
        tokens = engine.generate(prompts, 16)
        assert tokens == reference_greedy(policy, state(policy), prompts, 16)
        assert all(0 < len(t) < 16 for t in tokens)

    def test_closed(self, engine, cases):
        """Last."""
        engine.close()
        engine.close()
        with pytest.raises(RuntimeError, match="closed"):
            engine.label_pairs(cases)
