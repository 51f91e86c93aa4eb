"""What test_vllm_engine.py runs: the probe of a delivery on vLLM, right and with planted faults.

A fault is planted behind the receipt: vLLM loads a part of the update as it was before, and the fingerprints are those
of what was sent. The expected logprobs come from transformers, one unpadded forward a prompt.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from engine_tiny import reference_logprobs, state
from vllm_engine_checks import Served

from introspect_ray.actors.weight_sync import Expected, WeightSyncError, probe_tolerance, verify
from introspect_ray.cases.probes import ProbePlan, prompts_of
from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import TaskConfig, load_config
from introspect_ray.engines.fingerprint import fingerprints, group_of
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.organism import FOLDER as ORGANISM
from introspect_ray.policy import load_tokenizer
from introspect_ray.tasks import load_cases

POLICY = str(ORGANISM / "policy")
CFG = load_config(None, {})


class TestProbe(Served):
    """The bundled policy. `old` is what a fault keeps, `new` what is delivered: noise of 0.02 on every parameter."""

    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls):
        return POLICY

    @pytest.fixture(scope="class")
    @classmethod
    def weights(cls):
        return state(POLICY), state(POLICY, seed=1, scale=0.02)

    @pytest.fixture(scope="class")
    @classmethod
    def plan(cls, weights):
        tokenizer = load_tokenizer(POLICY)
        cases = [tokenize_case(case, tokenizer) for case in islice(load_cases(TaskConfig())[0], 64)]
        vocabulary = len(weights[0]["lm_head.weight"])
        used = CaseTable.build(cases).used_tokens(vocabulary)
        return ProbePlan(cases, used, CFG.rollout.probe_tokens, 0)

    def deliver(self, engine, weights, plan, number, stale=None):
        """Deliver the new weights, of which vLLM loads what `stale` makes of them, and verify the receipt."""
        _, new = weights
        update = WeightUpdate(engine.weight_version + 1, "full", new, plan.at(number))
        prompts, asked = prompts_of(update.probe)
        rows = reference_logprobs(POLICY, new, prompts)
        probe = tuple(torch.cat([row[list(tokens)] for row, tokens in zip(rows, asked, strict=True)]).tolist())
        load = engine._apply
        engine._apply = lambda update: load(replace(update, tensors=stale(update.tensors)) if stale else update)
        try:
            receipt = engine.load_weights(update)
        finally:
            del engine._apply
        verify(Expected(update.version, fingerprints(new), probe, probe_tolerance(CFG)), [receipt])
        return max(abs(a - b) for a, b in zip(receipt.probe, probe, strict=True))

    def test_a_right_engine_passes(self, engine, weights, plan):
        gaps = [self.deliver(engine, weights, plan, number) for number in range(8)]
        print(f"largest gap of a right engine on {len(gaps)} probes: {max(gaps):.1e} nats")
        assert max(gaps) < 1e-4

    def test_each_group_of_tensors_is_found_at_once(self, engine, weights, plan):
        old, _ = weights
        for group in sorted({group_of(name) for name in old}):
            with pytest.raises(WeightSyncError, match="does not serve weight version"):
                self.deliver(
                    engine,
                    weights,
                    plan,
                    3,
                    lambda new, group=group: {n: old[n] if group_of(n) == group else t for n, t in new.items()},
                )
        self.deliver(engine, weights, plan, 3)  # the engine is right again

    def test_one_row_is_found_within_the_rounds(self, engine, weights, plan):
        old, _ = weights
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            for row in (9, 200, 400):

                def stale(new, name=name, row=row):
                    mixed = new[name].clone()
                    mixed[row] = old[name][row]
                    return {**new, name: mixed}

                found = None
                for number in range(max(plan.rounds)):
                    try:
                        self.deliver(engine, weights, plan, number, stale)
                    except WeightSyncError:
                        found = number + 1
                        break
                print(f"row {row} of {name}: found at delivery {found} of {plan.rounds}")
                assert found is not None
