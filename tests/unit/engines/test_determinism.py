"""deterministic=true: torch's mode, where vLLM's batch-invariant mode exists, and what is said where it does not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import pytest
import torch
from engine_tiny import make_cases, save_policy
from learner_helpers import make_cases as training_cases
from learner_helpers import make_config, make_labels, make_pairs, save_model

from introspect_ray.config import RolloutConfig
from introspect_ray.engines import make_engine
from introspect_ray.engines.determinism import Shortfalls, batch_invariance_missing, use_deterministic_algorithms
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference


@pytest.fixture
def deterministic(monkeypatch) -> Iterator[None]:
    """Torch's mode within the test; what shows warnings is put back as well."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # a user's own choice stays
    filling = torch.utils.deterministic.fill_uninitialized_memory
    use_deterministic_algorithms()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filling


@pytest.mark.parametrize(
    ("cuda", "capability", "says"),
    [
        (True, (9, 0), None),
        (True, (10, 3), None),
        (True, (8, 9), r"needs compute capability 9\.0, and the engines' GPUs have 8\.9, .* rollout\.group_size"),
        (False, None, r"is for NVIDIA GPUs, and these engines have none, .* rollout\.group_size"),
    ],
)
def test_where_vllm_has_no_such_mode_the_line_says_why_and_what_to_do(cuda, capability, says):
    line = batch_invariance_missing(cuda, lambda: capability)
    assert line is None if says is None else re.search(says, str(line))


def test_an_operation_without_a_deterministic_form_is_noted_once(deterministic):
    noted = Shortfalls()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = noted._show
        for _ in range(2):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
        warnings.warn("something else", stacklevel=1)
    (line,) = noted.lines
    assert line.startswith("deterministic=true: ") and "put_" in line


def test_a_training_step_on_a_cpu_lacks_nothing(deterministic, tmp_path):
    """And two of them from the same state end at the same bits."""
    noted, cases = Shortfalls(), training_cases(8)
    policy, m0 = save_model(tmp_path / "model"), make_pairs(cases)
    reference = build_reference(policy, cases, m0, str(tmp_path))
    ends = []
    for _ in range(2):
        learner = Learner(make_config(), policy, reference, {case.case_id: case for case in cases})
        learner.step(make_labels(cases), m0)
        ends.append(learner.weights())
    assert noted.lines == []
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_an_engine_says_what_its_machine_lacks_and_answers_all_the_same(deterministic, tmp_path):
    policy, cases = save_policy(tmp_path), make_cases(5)
    plain, asked = (
        make_engine(RolloutConfig(engine="transformers"), policy, max_model_len=128, deterministic=on)
        for on in (False, True)
    )
    assert plain.shortfall() is None
    assert str(asked.shortfall()).startswith("transformers has no batch-invariant mode")
    pairs = zip(plain.label_pairs(cases), asked.label_pairs(cases), strict=True)
    assert all((one.cued, one.ablated) == (other.cued, other.ablated) for one, other in pairs)
