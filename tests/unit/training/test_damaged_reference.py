"""No damage to M0's reference reaches a loss: it is made again, fetched again, or the run stops and says what to do."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from learner_helpers import make_pairs, make_response_cases, save_model

from introspect_ray.errors import AlarmError, Outage, UserError
from introspect_ray.storage import open_store
from introspect_ray.training.reference import Reference, build_reference
from introspect_ray.training.reference_files import INDEX, ROWS, TENSORS, download_cache
from tests.damage import cuts, flips

CASES = make_response_cases(12)
IDS = [case.case_id for case in CASES]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("policy") / "policy")


def build(policy: str, cache: object) -> str:
    return build_reference(policy, CASES, make_pairs(CASES), str(cache))


def used(where: str) -> torch.Tensor:
    """All that a run reads."""
    reference = Reference.open(where)
    return reference.head.logits(reference.rows(IDS).hidden_BH)


@pytest.mark.parametrize("file", [INDEX, TENSORS, ROWS])
def test_a_run_never_reads_damage_and_the_next_set_up_makes_it_again(tmp_path, policy, caplog, file):
    """100 flips over each file, and files that end too early."""
    where = build(policy, tmp_path)
    expected, whole, damaged = used(where), (Path(where) / file).read_bytes(), 0
    for data in [*(data for _, data in flips(whole, 100)), *cuts(whole, 10)]:
        (Path(where) / file).write_bytes(data)
        with pytest.raises(AlarmError, match=r"^the reference [^\n]* is damaged \([^\n]*\): go on with --resume"):
            used(where)
        damaged += 1
        if damaged % 20 == 0:
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                assert build(policy, tmp_path) == where
            assert "is damaged (" in caplog.text and "it is made again" in caplog.text
            assert torch.equal(used(where), expected) and (Path(where) / file).read_bytes() == whole
    assert damaged == 112
    assert [path.name for path in Path(where).parent.iterdir()] == [Path(where).name]


def test_a_row_that_the_disk_spoils_during_a_run_is_noticed_when_it_is_read(tmp_path, policy):
    """In place, under the mapping of the reference that is open. Other rows stay in use."""
    where = build(policy, tmp_path)
    reference = Reference.open(where)
    before = reference.rows(IDS[:3]).hidden_BH
    last = reference.rows(IDS[-1:]).hidden_BH[-1].numpy().tobytes()
    with (Path(where) / TENSORS).open("r+b") as file:
        at = file.read().rindex(last)
        file.seek(at)
        file.write(bytes([last[0] ^ 1]))
    assert torch.equal(reference.rows(IDS[:3]).hidden_BH, before)
    with pytest.raises(AlarmError, match=r"row \d+ of ablated in .* \(1 of \d+ rows"):
        reference.rows(IDS)


def test_one_without_checksums_is_made_again(tmp_path, policy):
    where = build(policy, tmp_path)
    (Path(where) / INDEX).write_text('{"case_ids": ["case-0"], "dtype": "float32", "policy": "x", "scaling": {}}')
    assert build(policy, tmp_path) == where and len(used(where))


def test_a_damaged_one_that_cannot_be_deleted_is_named(tmp_path, policy, monkeypatch):
    where = build(policy, tmp_path)
    (Path(where) / ROWS).write_bytes(b"")

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(UserError, match=r"is damaged \(.*\) and cannot be deleted \(Permission denied\): delete"):
        build(policy, tmp_path)


def test_on_s3_a_damaged_download_is_fetched_again_and_a_damaged_object_made_again(
    s3_env, tmp_path, policy, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    where, store = build(policy, s3_env), open_store(s3_env)
    expected, local = used(where), download_cache(where)
    whole = (local / TENSORS).read_bytes()
    (local / TENSORS).write_bytes(whole[:-1])  # found when it is opened
    assert torch.equal(used(where), expected)
    row = Reference.open(where).rows(IDS).hidden_BH[0].numpy().tobytes()
    at = whole.index(row)
    (local / TENSORS).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(Outage, match="it is deleted, to be fetched again"):  # found when a row is read
        used(where)
    assert torch.equal(used(where), expected)
    name = next(name for name in store.list() if name.endswith(TENSORS))
    store.write_bytes(name, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert build(policy, s3_env) == where
    assert store.read_bytes(name) == whole and torch.equal(used(where), expected)
