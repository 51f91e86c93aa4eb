"""The reference of a table of cases, packed group by group, is that of a list packed at once."""

from __future__ import annotations

import pytest
import torch
from learner_helpers import make_cases, reference_logprobs, save_model

from introspect_ray.cases.table import CaseTable
from introspect_ray.train import reference
from introspect_ray.train.reference import build_reference


def test_groups_of_cases_give_the_reference_of_all(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Seven cases in groups of three: the last is one alone. Only rounding may differ, by what is computed together."""
    cases, path = make_cases(7, seed=3), save_model(tmp_path / "policy")
    ids = [case.case_id for case in cases]
    at_once = reference_logprobs(build_reference(path, cases, str(tmp_path / "a")), ids)
    monkeypatch.setattr(reference, "CASES_PER_PACKING", 3)
    table = CaseTable.build(cases, tmp_path)
    where = build_reference(path, table, str(tmp_path / "b"))
    assert where.rsplit("/", 1)[1] == build_reference(path, cases, str(tmp_path / "a")).rsplit("/", 1)[1]
    for ours, theirs in zip(reference_logprobs(where, ids), at_once, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
