"""docs/minimal.py, the method in one file, takes the steps that the system takes."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import load_config
from introspect_ray.labels.rules import Sources, make_labels
from introspect_ray.policy import resolve_policy
from introspect_ray.schedule import step_plan
from introspect_ray.tasks import load_cases
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

STEPS = 3
FILE = Path(__file__).parents[2] / "docs" / "minimal.py"


@pytest.fixture(scope="module")
def minimal() -> Iterator[ModuleType]:
    """The file as a module; torch on one thread, as in the file's own main."""
    spec = importlib.util.spec_from_file_location("minimal", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


def minimal_losses(minimal: ModuleType, rule: str, agreement: float) -> list[tuple[float, float, float]]:
    folder = minimal.ORGANISM / "policy"
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    m0 = copy.deepcopy(policy).requires_grad_(False)
    cases = minimal.load_cases(minimal.ORGANISM / "train.jsonl", AutoTokenizer.from_pretrained(folder))
    return list(minimal.train(policy, m0, cases, STEPS, 1.0, rule, agreement, seed=0))


def system_losses(folder: Path, rule: str, agreement: float) -> tuple[list[tuple[float, float, float]], int]:
    """(loss, cross-entropy, KL) of each step, and how many of the labels the online rule made wrong."""
    cfg = load_config(None, {"supervision.rule": rule, "supervision.agreement": agreement})
    policy = resolve_policy(cfg.policy)
    train = list(load_cases(cfg.task)[0])
    plans = [[train[i] for i in step_plan(cfg.seed, step, len(train), cfg.batch_size)] for step in range(STEPS)]
    tokenizer = AutoTokenizer.from_pretrained(policy)
    cases = {case.case_id: tokenize_case(case, tokenizer) for plan in plans for case in plan}
    learner = Learner(cfg, policy, build_reference(policy, list(cases.values()), None, str(folder)), cases)
    m0 = {pair.case_id: pair for pair in learner.label_pairs(list(cases.values()), 0)}
    sources = Sources({case_id: case.labels for case_id, case in cases.items()}, cfg.policy, m0)
    losses, flipped = [], 0
    for step, plan in enumerate(plans):
        ids = [case.case_id for case in plan]
        labels = make_labels(cfg, sources, step, ids, learner.label_pairs([cases[i] for i in ids], step))
        flipped += sum(label.provenance.flipped for label in labels)
        result = learner.step(labels, m0)
        losses.append((result["loss"], result["cross_entropy"], result["kl"]))
    return losses, flipped


@pytest.mark.parametrize(("rule", "agreement"), [("fixed", 1.0), ("online", 0.8)])
def test_its_losses_are_those_of_the_system(minimal, tmp_path, rule, agreement):
    """In step 0 the KL is 0; a wrong order of cases, label, mean or update would show in one of the steps."""
    theirs, flipped = system_losses(tmp_path, rule, agreement)
    ours = minimal_losses(minimal, rule, agreement)
    assert theirs[2][2] > 1e-3 and (flipped > 0) == (rule == "online")
    for mine, system in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(system, abs=1e-5)
