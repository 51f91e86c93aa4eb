"""M0's cached reference: equal to a live forward, addressed by its content, built in groups of cases."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_helpers import make_cases, make_pairs, make_response_cases, reference_logprobs, save_model

from introspect_ray.errors import UserError
from introspect_ray.policy import load_model
from introspect_ray.training import reference
from introspect_ray.training.prompt_tree import response_paths
from introspect_ray.training.reference import Reference, build_reference, reference_key

CASES = make_cases(7)


@pytest.mark.parametrize("tied", [False, True])
def test_reference_equals_a_live_forward(tmp_path, tied):
    path = save_model(tmp_path / "policy", tied=tied)
    where = build_reference(path, CASES, None, str(tmp_path / "cache"), "float32", batch_tokens=64)
    model = load_model(path, torch.float32)
    ids = [CASES[i].case_id for i in (4, 0, 6)]
    cued, ablated = reference_logprobs(where, ids)
    with torch.no_grad():
        for side, sequence_of in ((cued, lambda c: c.prompt), (ablated, lambda c: c.ablated)):
            for row, i in enumerate((4, 0, 6)):
                logits = model(input_ids=torch.tensor([sequence_of(CASES[i])])).logits[0, -1]
                torch.testing.assert_close(side[row], torch.log_softmax(logits, -1), rtol=1e-5, atol=1e-5)


def test_responses_have_a_row_per_prediction(tmp_path):
    """Letters, words and free text; what M0 predicts at the end of each prompt and after each token of a path."""
    path, cases = save_model(tmp_path / "policy"), make_response_cases(12)
    m0 = make_pairs(cases)
    where = build_reference(path, cases, m0, str(tmp_path / "cache"), batch_tokens=64)
    picked = [cases[i] for i in (4, 0, 11, 5, 8)]
    prefixes = []
    for side in range(2):
        for case in picked:
            cued, ablated = response_paths(case, m0[case.case_id])
            prompt, response = ((case.prompt, cued), (case.ablated, ablated))[side]
            prefixes += [prompt + response[:k] for k in range(len(response) + 1)]
    assert len(prefixes) == 5 + 2 + 5 + 5 + 4
    rows = Reference.open(where).rows([case.case_id for case in picked])
    found = rows.head.logits(rows.hidden_BH).log_softmax(-1)
    model = load_model(path, torch.float32)
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1) for tokens in prefixes]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_reference_is_named_after_the_responses(tmp_path):
    """Those of one token do not count: they lie at the ends of the prompts, whatever M0 answers there."""
    path = save_model(tmp_path / "policy")
    letters, others = make_cases(3), make_response_cases(3)
    m0 = make_pairs(others)
    assert reference_key(path, letters, None, "float32") == reference_key(path, letters, make_pairs(letters), "float32")
    changed = {**m0, "case-2": replace(m0["case-2"], ablated_response=(42, 44))}
    assert reference_key(path, others, m0, "float32") != reference_key(path, others, changed, "float32")
    with pytest.raises(ValueError, match="case-1: its answer may have several tokens, so the reference needs M0's"):
        reference_key(path, others, None, "float32")


def test_responses_of_other_lengths_are_refused(tmp_path):
    """The free text of case-2 has 0 and 2 tokens and an end of turn each, so 1 and 3 predictions."""
    cases = make_response_cases(3)
    where = build_reference(save_model(tmp_path / "policy"), cases, make_pairs(cases), str(tmp_path))
    reference, ids = Reference.open(where), ["case-0", "case-2"]
    assert len(reference.rows(ids, np.array([[1, 1], [1, 3]])).hidden_BH) == 6
    with pytest.raises(UserError, match=r"'case-2'.* has \[1, 3\] positions .*, the run \[1, 2\]: build"):
        reference.rows(ids, np.array([[1, 1], [1, 2]]))


def test_reference_is_addressed_by_content_and_built_once(tmp_path):
    path = save_model(tmp_path / "policy")
    first = build_reference(path, CASES, None, str(tmp_path / "cache"))
    (tmp_path / "policy" / "model.safetensors").touch()
    stamp = (tmp_path / "cache").glob("references/*/index.json").__next__().stat().st_mtime_ns
    assert build_reference(path, CASES, None, str(tmp_path / "cache")) == first
    assert (tmp_path / "cache").glob("references/*/index.json").__next__().stat().st_mtime_ns == stamp
    assert build_reference(path, CASES[1:], None, str(tmp_path / "cache")) != first
    assert [p.name for p in (tmp_path / "cache" / "references").iterdir() if p.name.startswith(".")] == []


def test_groups_of_cases_give_the_reference_of_all(tmp_path, monkeypatch):
    """Seven cases in groups of three, three and one. The values differ by rounding only, the name does not."""
    path = save_model(tmp_path / "policy")
    ids = [case.case_id for case in CASES]
    at_once = build_reference(path, CASES, None, str(tmp_path / "a"))
    monkeypatch.setattr(reference, "CASES_PER_PACKING", 3)
    in_groups = build_reference(path, CASES, None, str(tmp_path / "b"))
    assert in_groups.rsplit("/", 1)[1] == at_once.rsplit("/", 1)[1]
    for ours, theirs in zip(reference_logprobs(in_groups, ids), reference_logprobs(at_once, ids), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_missing_reference_and_an_unknown_case_are_refused(tmp_path):
    with pytest.raises(UserError, match="missing or incomplete: run build_reference again"):
        Reference.open(str(tmp_path / "nowhere"))
    where = build_reference(save_model(tmp_path / "policy"), CASES, None, str(tmp_path))
    with pytest.raises(UserError, match=r"lacks 1 of 2 cases, e\.g\. 'case-9'"):
        Reference.open(where).rows(["case-0", "case-9"])
