"""Trainer and engine are compared on the labels of every step, at any lag, on the version that made them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from learner_helpers import make_pairs, organism_cases, weight_update, with_free_text

from introspect_ray.cases.probes import case_item
from introspect_ray.config import load_config
from introspect_ray.engines import make_engine
from introspect_ray.errors import AlarmError
from introspect_ray.labels.rules import online_label
from introspect_ray.loop import run
from introspect_ray.policy import BUNDLED
from introspect_ray.records import StepLabels, StepMetrics
from introspect_ray.schedule import label_version, plan_ids
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

POLICY, CASES, STEPS = str(BUNDLED["organism"]), organism_cases(20), 6
BY_ID = {case.case_id: case for case in CASES}
M0 = make_pairs(CASES)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> str:
    return build_reference(POLICY, CASES, None, str(tmp_path_factory.mktemp("reference")))


class InProcess:
    """The loop's Supply over one engine, which labels when it is asked. stale: a tensor that it keeps as in M0."""

    def __init__(self, cfg: Any, stale: str) -> None:
        self.cfg, self.stale, self.kept = cfg, stale, None
        self.engine: Any = make_engine(cfg.rollout, POLICY, max_model_len=256)
        self.steps: dict[int, StepLabels] = {}

    def publish(self, learner: Learner, version: int) -> None:
        update = weight_update(learner, version, CASES[0])
        self.kept = self.kept or update.tensors
        self.engine.load_weights(replace(update, tensors={**update.tensors, **{n: self.kept[n] for n in self._old()}}))

    def _old(self) -> list[str]:
        return [self.stale] if self.stale else []

    def request(self, step: int, version: int) -> None:
        pairs = self.engine.label_pairs([BY_ID[i] for i in plan_ids(self.cfg, list(BY_ID), step)])
        rule = {"agreement": 1.0, "wrong_label": "content", "source_model": POLICY, "seed": 0, "step": step}
        labels = [online_label(pair, BY_ID[pair.case_id].labels, **rule) for pair in pairs]
        self.steps[step] = StepLabels(labels, pairs, 1.0, 0.0, None, 0.0, 0.0, 0.0)

    def fetch(self, step: int) -> StepLabels:
        return self.steps.pop(step)


def trained(
    reference: str, lag: int, sync_every: int, stale: str = "", look: int = 2
) -> tuple[list[StepMetrics], dict[str, torch.Tensor]]:
    """The metrics of each step, and the weights at the end. look: cases of a step that the trainer reads itself."""
    flat = {"lag": lag, "rollout.sync_every": sync_every, "steps": STEPS, "batch_size": 8, "learning_rate": 1e-3}
    flat |= {"supervision.rule": "online", "rollout.engine": "transformers"}
    cfg = load_config(None, {**flat, "rollout.probe_tokens": 16 * look})  # x and x∖C of a case have 14 tokens together
    learner = Learner(cfg, POLICY, reference, BY_ID)
    asked, label_pairs = [], learner.label_pairs
    learner.label_pairs = lambda cases, version: asked.append((len(cases), version)) or label_pairs(cases, version)
    rows: list[StepMetrics] = []
    conductor = SimpleNamespace(report=rows.append, node_is_going=lambda: False)
    try:
        run(cfg, learner, InProcess(cfg, stale), conductor, M0, CASES)
    finally:
        others = [step for step in range(STEPS) if label_version(step, lag, sync_every) != step]
        expected = [label_version(step, lag, sync_every) for step in others]
        assert [version for _, version in asked] == expected[: len(asked)]  # one sample a step, on its version
        assert all(cases == look for cases, _ in asked)
    return rows, learner.weights()


@pytest.mark.parametrize(("lag", "sync_every"), [(0, 1), (1, 1), (0, 2), (2, 2)])
def test_a_right_engine_agrees_at_every_step(reference, lag, sync_every):
    """Compared with weights of another version, the gap would be beyond 1e-3 at this learning rate."""
    rows, _ = trained(reference, lag, sync_every)
    assert len(rows) == STEPS and all(row.engine_gap is not None and row.engine_gap < 1e-4 for row in rows)


def test_what_is_looked_at_changes_no_bit(reference):
    (rows, few), (others, many) = (trained(reference, 1, 1, look=look) for look in (1, 4))
    assert [row.loss for row in rows] == [row.loss for row in others]
    assert all(torch.equal(few[name], many[name]) for name in few)


@pytest.mark.parametrize(("lag", "sync_every"), [(0, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("stale", ["model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_an_engine_with_old_weights_stops_the_run(reference, lag, sync_every, stale):
    """It is found when labels of the first version are used that differs from M0, or soon after it."""
    with pytest.raises(AlarmError, match="engine differ by") as caught:
        trained(reference, lag, sync_every, stale)
    step = int(str(caught.value).split(":")[0].removeprefix("step "))
    first = next(s for s in range(STEPS) if label_version(s, lag, sync_every))
    print(f"\nlag {lag}, sync_every {sync_every}, {stale}: found at step {step}, the first with such labels is {first}")
    assert first <= step < STEPS


def test_free_text_is_left_out_of_the_sample(reference):
    """There are no logprobs to compare; the forward would refuse it."""
    from introspect_ray.loop import _own_logprobs

    cfg = load_config(None, {"supervision.rule": "online", "batch_size": 4, "lag": 1})
    learner = Learner(cfg, POLICY, reference, BY_ID)
    mixed = [replace(with_free_text(case), explanations=case.explanations) for case in CASES[:3]] + CASES[3:4]
    assert list(_own_logprobs(cfg, learner, mixed, 1, 0, 0, 1)) == [CASES[3].case_id]
    assert _own_logprobs(cfg, learner, mixed[:3], 1, 0, 0, 1) == {}
    assert case_item(mixed[0]).asked  # but the probe of a delivery has tokens to ask for
