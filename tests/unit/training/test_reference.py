"""M0's cached reference: equal to a live forward, addressed by its content, built in groups of cases."""

import pytest
import torch
from learner_helpers import make_cases, reference_logprobs, save_model

from introspect_ray.errors import UserError
from introspect_ray.policy import load_model
from introspect_ray.training import reference
from introspect_ray.training.reference import Reference, build_reference

CASES = make_cases(7)


@pytest.mark.parametrize("tied", [False, True])
def test_reference_equals_a_live_forward(tmp_path, tied):
    path = save_model(tmp_path / "policy", tied=tied)
    where = build_reference(path, CASES, str(tmp_path / "cache"), "float32", batch_tokens=64)
    model = load_model(path, torch.float32)
    ids = [CASES[i].case_id for i in (4, 0, 6)]
    cued, ablated = reference_logprobs(where, ids)
    with torch.no_grad():
        for side, sequence_of in ((cued, lambda c: c.prompt), (ablated, lambda c: c.ablated)):
            for row, i in enumerate((4, 0, 6)):
                logits = model(input_ids=torch.tensor([sequence_of(CASES[i])])).logits[0, -1]
                torch.testing.assert_close(side[row], torch.log_softmax(logits, -1), rtol=1e-5, atol=1e-5)


def test_reference_is_addressed_by_content_and_built_once(tmp_path):
    path = save_model(tmp_path / "policy")
    first = build_reference(path, CASES, str(tmp_path / "cache"))
    (tmp_path / "policy" / "model.safetensors").touch()
    stamp = (tmp_path / "cache").glob("references/*/index.json").__next__().stat().st_mtime_ns
    assert build_reference(path, CASES, str(tmp_path / "cache")) == first
    assert (tmp_path / "cache").glob("references/*/index.json").__next__().stat().st_mtime_ns == stamp
    assert build_reference(path, CASES[1:], str(tmp_path / "cache")) != first
    assert [p.name for p in (tmp_path / "cache" / "references").iterdir() if p.name.startswith(".")] == []


def test_groups_of_cases_give_the_reference_of_all(tmp_path, monkeypatch):
    """Seven cases in groups of three, three and one. The values differ by rounding only, the name does not."""
    path = save_model(tmp_path / "policy")
    ids = [case.case_id for case in CASES]
    at_once = build_reference(path, CASES, str(tmp_path / "a"))
    monkeypatch.setattr(reference, "CASES_PER_PACKING", 3)
    in_groups = build_reference(path, CASES, str(tmp_path / "b"))
    assert in_groups.rsplit("/", 1)[1] == at_once.rsplit("/", 1)[1]
    for ours, theirs in zip(reference_logprobs(in_groups, ids), reference_logprobs(at_once, ids), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_missing_reference_and_an_unknown_case_are_refused(tmp_path):
    with pytest.raises(UserError, match="missing or incomplete: run build_reference again"):
        Reference.open(str(tmp_path / "nowhere"))
    where = build_reference(save_model(tmp_path / "policy"), CASES, str(tmp_path))
    with pytest.raises(UserError, match=r"lacks 1 of 2 cases, e\.g\. 'case-9'"):
        Reference.open(where).rows(["case-0", "case-9"])
