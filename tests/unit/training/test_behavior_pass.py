"""One pass of M0: its labels are those of a plain forward, its reference has the bits of build_reference, and it goes
on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learner_helpers import (
    make_cases,
    make_pairs,
    make_response_cases,
    organism_cases,
    reference_logprobs,
    save_model,
    with_words,
)

from introspect_ray.errors import UserError
from introspect_ray.policy import BUNDLED, load_model
from introspect_ray.training import behavior_pass, reference
from introspect_ray.training.behavior_pass import BehaviorPass, Part, parts_of, path_rows
from introspect_ray.training.packing import pack
from introspect_ray.training.prompt_tree import build_tree
from introspect_ray.training.reference import build_reference

CASES = make_cases(9)
MIXED = [with_words(case) if i % 2 else case for i, case in enumerate(CASES)]  # answers of one token, and of several


def files_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def finish(work: BehaviorPass) -> None:
    for part in work.missing():
        work.make(part)


def test_labels_are_those_of_a_plain_forward_of_the_organism(tmp_path):
    """Each prompt alone through transformers; the last position gives labels, logprobs and the off-format flag."""
    policy, cases = str(BUNDLED["organism"]), organism_cases(40)
    work = BehaviorPass(policy, cases, str(tmp_path), batch_tokens=256)
    finish(work)
    model = load_model(policy, torch.float32)
    pairs = list(work.pairs())
    for case, pair in zip(cases, pairs, strict=True):
        assert (pair.case_id, pair.weight_version) == (case.case_id, 0)
        letters = [token for (token,) in case.label_tokens]
        sides = (
            (case.prompt, pair.cued, pair.cued_logprobs, pair.cued_off_format),
            (case.ablated, pair.ablated, pair.ablated_logprobs, pair.ablated_off_format),
        )
        for prompt, label, logprobs, off_format in sides:
            with torch.no_grad():
                row = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            assert logprobs == pytest.approx(row[letters].tolist(), abs=1e-4)
            assert label == case.labels[int(row[letters].argmax())]
            assert off_format == (int(row.argmax()) not in letters)
    assert {pair.cued for pair in pairs} == {"A", "B", "C", "D"}  # no constant answer, which would show nothing


@pytest.mark.parametrize("cases", [CASES, MIXED], ids=["letters", "words"])
def test_the_reference_has_the_bits_of_build_reference(tmp_path, monkeypatch, cases):
    """In groups of four cases and forwards of 64 tokens, file by file; for words along answers that M0 did not give, as
    a calibration may read them."""
    for module in (reference, behavior_pass):
        monkeypatch.setattr(module, "CASES_PER_PACKING", 4)
    path, m0 = save_model(tmp_path / "policy"), make_pairs(cases)
    work = BehaviorPass(path, cases, str(tmp_path / "once"), batch_tokens=64)
    finish(work)
    once = work.reference(m0)
    alone = build_reference(path, cases, m0, str(tmp_path / "alone"), batch_tokens=64)
    assert once.rsplit("/", 1)[1] == alone.rsplit("/", 1)[1]
    assert files_of(once) == files_of(alone) and len(files_of(once)) == 3


def test_a_pass_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """Nine cases in groups of four: of its parts one is lost and one damaged; the others are not computed again, and
    the pairs and the reference are those of an undisturbed pass."""
    monkeypatch.setattr(behavior_pass, "CASES_PER_PACKING", 4)
    path = save_model(tmp_path / "policy")
    options = (path, MIXED, str(tmp_path / "cache"), "float32", 64)
    work = BehaviorPass(*options)
    assert len(work.parts) >= 4 and work.missing() == work.parts and sum(part.cases for part in work.parts) == 9
    finish(work)
    pairs = list(work.pairs())
    files = sorted((tmp_path / "cache" / "passes").glob("*/*.part"))
    assert len(files) == len(work.parts)
    files[0].unlink()
    content = bytearray(files[1].read_bytes())
    content[-3] ^= 1
    files[1].write_bytes(content)
    kept = {file: file.stat().st_mtime_ns for file in files[2:]}
    again = BehaviorPass(*options)
    assert again.missing() == work.parts[:1]
    assert list(again.pairs()) == pairs  # computes both
    assert again.missing() == [] and {file: file.stat().st_mtime_ns for file in files[2:]} == kept
    where = again.reference(make_pairs(MIXED))
    other = BehaviorPass(path, MIXED, str(tmp_path / "other"), "float32", 64)
    assert list(other.pairs()) == pairs and files_of(other.reference(make_pairs(MIXED))) == files_of(where)
    assert len(reference_logprobs(where, ["case-0"])[0]) == 1


def test_another_policy_type_or_budget_is_another_pass(tmp_path):
    path = save_model(tmp_path / "policy")
    finish(BehaviorPass(path, CASES, str(tmp_path / "cache"), "float32", 64))
    assert BehaviorPass(path, CASES, str(tmp_path / "cache"), "float32", 64).missing() == []
    second = save_model(tmp_path / "second", tied=False)
    others = [(second, CASES, "float32", 64), (path, CASES[1:], "float32", 64), (path, CASES, "bfloat16", 64)]
    for policy, cases, dtype, budget in [*others, (path, CASES, "float32", 65)]:
        work = BehaviorPass(policy, cases, str(tmp_path / "cache"), dtype, budget)
        assert work.missing() == work.parts


def test_free_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="case 'case-2' is answered in free text"):
        BehaviorPass(save_model(tmp_path / "policy"), make_response_cases(3), str(tmp_path))


def test_rows_along_answers():
    """The nodes of NTA (14, 15), YTA (16, 15), ESH (16, 17, 18) are (), (14,), (16,), (16, 17); those of letters ().

    Case 0: letters. Case 1: x YTA, so () and (16,); x∖C ESH, so (), (16,) and (16, 17). In the batch: x of both, then
    x∖C of both, so case 0 has row 0 of x and row 5 of x∖C, and case 1 begins at rows 1 and 6.
    """
    trees = [build_tree(case, None, None) for case in MIXED[:2]]
    (batch,) = pack(trees, 4096)
    order = [MIXED[int(tree.case_id[-1])] for tree in batch.trees]
    assert [tree.case_id for tree in batch.trees] in (["case-0", "case-1"], ["case-1", "case-0"])
    letters, words = make_pairs(order)["case-0"], make_pairs(MIXED)["case-1"]
    words = type(words)("case-1", "YTA", "ESH", (), (), False, False, 0)
    if order[0] is MIXED[0]:
        assert path_rows(batch, [letters, words]) == [0, 1, 3, 5, 6, 8, 9]
    else:
        assert path_rows(batch, [words, letters]) == [0, 2, 4, 5, 7, 8, 9]


def test_parts_of_a_group(monkeypatch):
    """Ten forwards in at most four parts: three each, and one."""
    monkeypatch.setattr(behavior_pass, "PARTS_PER_GROUP", 4)
    batches = [pack([build_tree(case, None, None)], 64)[0] for case in make_cases(10)]
    assert parts_of(2, batches) == [Part(2, 0, 3, 3), Part(2, 3, 6, 3), Part(2, 6, 9, 3), Part(2, 9, 10, 1)]
    assert parts_of(0, []) == []
