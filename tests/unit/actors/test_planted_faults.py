"""Engines that keep some old weights, while receipt and bytes are right: after how many deliveries it is found.

A real training of the organism delivers each version to a real engine, in which a part of every update is replaced by
M0's weights before it is loaded. The receipt's fingerprints are those of what was sent, so only the probe can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from learner_helpers import make_labels, make_pairs, organism_cases

from introspect_ray.actors.weight_sync import Expected, WeightSyncError, probe_tolerance, verify
from introspect_ray.cases.probes import ProbePlan
from introspect_ray.cases.table import CaseTable
from introspect_ray.config import RunConfig, load_config
from introspect_ray.engines import make_engine
from introspect_ray.engines.fingerprint import fingerprints, group_of
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.policy import BUNDLED
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

POLICY, CASES, BATCH = str(BUNDLED["organism"]), organism_cases(64), 16
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
GROUPS = [EMBEDDING, "model.layers.0", "model.layers.1", "model.layers.2", "model.norm", HEAD]
GROW = 2  # deliveries until what a learning rate of 1e-3 moves shows in a logprob
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Training:
    """Weights by version, the probe of each delivery and the trainer's own logprobs on it."""

    cfg: RunConfig
    plan: ProbePlan
    used: np.ndarray
    weights: list[Tensors]
    probes: list[tuple[float, ...]]


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Training:
    cfg = load_config(None, {"learning_rate": 1e-3, "rollout.engine": "transformers", "batch_size": BATCH})
    m0, labels = make_pairs(CASES), make_labels(CASES)
    reference = build_reference(POLICY, CASES, m0, str(tmp_path_factory.mktemp("reference")))
    learner = Learner(cfg, POLICY, reference, {case.case_id: case for case in CASES})
    used = CaseTable.build(CASES).used_tokens(learner.vocabulary)
    plan = ProbePlan(CASES, used, cfg.rollout.probe_tokens, cfg.seed)
    weights, probes = [], []
    for version in range(plan.rounds.others + GROW + 1):
        weights.append(learner.weights())
        probes.append(learner.probe(plan.at(version)))
        first = version * BATCH % len(CASES)
        learner.step(labels[first : first + BATCH], m0)
    return Training(cfg, plan, used, weights, probes)


def found_after(training: Training, plant: Callable[[Tensors], Tensors]) -> int:
    """Deliveries until one is refused, where the engine loads what `plant` makes of each update."""
    engine: Any = make_engine(training.cfg.rollout, POLICY, max_model_len=256)
    load, tolerance = engine._apply, probe_tolerance(training.cfg)
    engine._apply = lambda update: load(replace(update, tensors=plant(update.tensors)))
    for version in range(1, len(training.weights)):
        update = WeightUpdate(version, "full", training.weights[version], training.plan.at(version))
        try:
            sent = Expected(version, fingerprints(update.tensors), training.probes[version], tolerance)
            verify(sent, [engine.load_weights(update)])
        except WeightSyncError:
            return version
    raise AssertionError(f"not found in {len(training.weights) - 1} deliveries")


def stale_group(training: Training, group: str) -> Callable[[Tensors], Tensors]:
    old = training.weights[0]
    return lambda tensors: {n: old[n] if group_of(n) == group else t for n, t in tensors.items()}


def stale_rows(training: Training, group: str, rows: list[int]) -> Callable[[Tensors], Tensors]:
    name = f"{group}.weight"

    def plant(tensors: Tensors) -> Tensors:
        mixed = tensors[name].clone()
        mixed[rows] = training.weights[0][name][rows]
        return {**tensors, name: mixed}

    return plant


def test_a_right_engine_passes_all_deliveries(training):
    with pytest.raises(AssertionError, match="not found in"):
        found_after(training, lambda tensors: tensors)


def test_each_group_of_tensors_is_found(training):
    """A group is all of a layer, or an embedding or a norm. Every probe sees all of them."""
    assert {group_of(name) for name in training.weights[0]} == set(GROUPS)
    found = {group: found_after(training, stale_group(training, group)) for group in GROUPS}
    print(f"\ndeliveries until a stale group is found: {found}")
    assert max(found.values()) <= GROW


def test_embeddings_outside_one_case_are_found(training):
    """What a probe of always the same case never saw: 16 tokens of its x and x∖C."""
    shown = {*CASES[0].prompt[-16:], *CASES[0].ablated[-16:]}
    rows = [token for token in range(len(training.used)) if token not in shown]
    found = found_after(training, stale_rows(training, EMBEDDING, rows))
    print(f"\ndeliveries until embeddings beyond one case are found: {found}")
    assert found <= GROW


def test_one_row_is_found_within_the_rounds(training):
    """Rows that training moved: of the embedding those that cases use, of the output head all."""
    old, new, rounds = training.weights[0], training.weights[GROW], training.plan.rounds
    moved = (new[f"{EMBEDDING}.weight"] - old[f"{EMBEDDING}.weight"]).abs().amax(1).numpy()
    often = np.flatnonzero(training.used & (moved > 1e-3))[::9]
    found = {int(row): found_after(training, stale_rows(training, EMBEDDING, [row])) for row in often}
    heads = {int(row): found_after(training, stale_rows(training, HEAD, [row])) for row in often}
    print(f"\n{rounds}; deliveries until one row is found: embedding {found}, head {heads}")
    assert len(found) >= 4 and max(*found.values(), *heads.values()) <= rounds.used + GROW
    others = {
        int(row): found_after(training, stale_rows(training, HEAD, [row]))
        for row in (~training.used).nonzero()[0][::97]
    }
    print(f"rows of the head that no case uses: {others}")
    assert len(others) >= 3 and max(others.values()) <= rounds.others + GROW
