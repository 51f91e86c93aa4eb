"""Tables of cases: what goes in comes out, by row and by id, in this process and in another one."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from introspect_ray.cases import record_table, table_batches
from introspect_ray.cases.lookup import ids_of, records_of
from introspect_ray.cases.record_table import IdIndex
from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import longest_sequence
from introspect_ray.errors import UserError
from introspect_ray.records import Explanation, Templates, TokenizedCase

AB = {Explanation(False, "A"): (20, 10, 2), Explanation(True, "B"): (20, 21, 11, 2)}
YES = {Explanation(False, "yes"): (20, 21, 22, 23, 12, 2)}
CASES = [
    TokenizedCase("q-1", ("A", "B"), ((10,), (11,)), (1, 7, 9), (1, 7), (1, 7, 9, 4), AB),
    TokenizedCase("", ("yes", "no"), ((12,), (13,)), (1,), (2**31 - 1,), (1, 4), YES),
    TokenizedCase("ä-Ω-∖", ("A", "B"), ((10,), (11,)), (1, 7, 7, 7, 7, 7, 7), (1, 8), (1, 8, 4), dict(AB)),
]


@pytest.fixture
def table(tmp_path: Path) -> CaseTable:
    return CaseTable.build(iter(CASES), tmp_path)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_batches, "BATCH_ROWS", 2)


def test_rows_ids_and_order(table, small_batches, tmp_path):
    for made in (table, CaseTable.build(CASES, tmp_path)):
        assert len(made) == 3 and list(made) == CASES
        assert [made[i] for i in (0, 1, 2, -1)] == [*CASES, CASES[2]] and made[1:] == CASES[1:]
        assert list(made.case_ids) == [case.case_id for case in CASES] and made.case_ids[-1] == "ä-Ω-∖"
        by_id = made.by_id
        assert [by_id[case.case_id] for case in CASES] == CASES and list(by_id) == list(made.case_ids)
        assert "q-1" in by_id and "q-2" not in by_id and len(by_id) == 3 and list(by_id.values()) == CASES
        with pytest.raises(KeyError):
            by_id["q-2"]
        with pytest.raises(IndexError):
            made[3]
    assert type(table[0].prompt[0]) is int and type(table[0].label_tokens[0][0]) is int


def test_a_batch_by_id(table, small_batches, tmp_path):
    """From one Arrow batch, from two, and from a plain dict: in the order of the ids, also where an id comes twice."""
    for by_id in (table.by_id, CaseTable.build(CASES, tmp_path).by_id, {case.case_id: case for case in CASES}):
        assert records_of(by_id, ["ä-Ω-∖", "q-1", "q-1"]) == [CASES[2], CASES[0], CASES[0]]
        assert records_of(by_id, iter(())) == []
        assert list(ids_of(by_id)) == ["q-1", "", "ä-Ω-∖"]
        with pytest.raises(KeyError, match="q-2"):
            records_of(by_id, ["q-1", "q-2"])
    assert records_of(table.labels, [""]) == [("yes", "no")]


def test_what_cases_share_is_kept_once(table):
    """The first and the last case have equal labels and explanations, in two dicts."""
    assert len(table.answers) == 2
    assert table[0].explanations is table[2].explanations
    assert dict(table.labels) == {"q-1": ("A", "B"), "": ("yes", "no"), "ä-Ω-∖": ("A", "B")}


def test_the_relabelers_labels_hold_no_tokens(tmp_path):
    """1,000 cases of 3 x 1,000 tokens are 12 MB; their ids and labels some 40 KB."""
    tokens = tuple(range(1000))
    cases = (replace(CASES[0], case_id=f"c{i}", prompt=tokens, ablated=tokens, question=tokens) for i in range(1000))
    table = CaseTable.build(cases, tmp_path)
    assert len(pickle.dumps(table)) > 12_000_000 and len(pickle.dumps(table.labels)) < 60_000


def test_lengths_by_hand(table, tmp_path):
    """x or x∖C: 7 at most. q 4, 2, 3 tokens; with the case's longest explanation 4 + 4, 2 + 6, 3 + 4."""
    assert (table.longest_question, table.longest_explanation) == (4, 6)
    assert table.longest_explained == 8
    assert table.longest_sequence == 8 == longest_sequence(CASES)  # 7 and an answer, 8
    longer = CaseTable.build([*CASES, replace(CASES[0], case_id="x", ablated=(1,) * 9)], tmp_path)
    assert (longer.longest_sequence, longer.longest_explained) == (10, 8)
    assert (longer.longest_answered, longer.longest_tree_path) == (10, 9)  # the answer's token is no node of a tree


def test_answers_of_several_tokens_count_with_their_own_prompt(tmp_path):
    """x 3 and x∖C 2 tokens with a free text of 9: 12. x 7 tokens with a label of at most 2: 9. q + e is 8 at most."""
    free = replace(CASES[0], case_id="free", label_tokens=(), max_response=9)
    spelled = replace(CASES[2], label_tokens=((10,), (11, 12)))
    table = CaseTable.build([free, spelled], tmp_path)
    assert (table.longest_answered, table.longest_sequence, table.longest_tree_path) == (12, 12, 11)
    assert table.longest_sequence == longest_sequence([free, spelled])
    assert CaseTable.build([spelled], tmp_path).longest_sequence == 9


def test_groups_metadata_and_wording_come_back(tmp_path, small_batches):
    """The third case shares all but its templates with the first, so it has an answer set of its own."""
    cases = [
        replace(CASES[0], group="hint", metadata='{"n": [1, "ä"]}'),
        CASES[1],
        replace(CASES[2], group="rôle", templates=Templates("Now {label}.", "Still {label}.", (("A", "a"),))),
    ]
    table = CaseTable.build(cases, tmp_path)
    assert list(table) == cases and list(pickle.loads(pickle.dumps(table))) == cases and len(table.answers) == 3
    assert [(case.group, case.metadata) for case in table] == [("hint", '{"n": [1, "ä"]}'), ("", ""), ("rôle", "")]


def test_cases_without_groups_and_metadata_cost_two_offsets(tmp_path):
    """Of 1,000 cases: 4 bytes for the end of each empty text, in the file."""
    table = CaseTable.build([replace(CASES[0], case_id=f"c{i}") for i in range(1000)], tmp_path)
    texts = [batch.column(name) for batch in table.batches for name in ("group", "metadata")]
    assert sum(buffer.size for text in texts for buffer in text.buffers() if buffer) <= 2 * 4 * 1001 + 128


def test_no_cases(tmp_path):
    none = CaseTable.build([], tmp_path)
    assert len(none) == 0 and list(none) == [] and "q-1" not in none.by_id
    assert (none.longest_question, none.longest_explained, none.longest_explanation) == (0, 0, 0)


def test_an_id_may_not_occur_twice(tmp_path):
    with pytest.raises(ValueError, match="'q-1' occurs twice"):
        CaseTable.build([*CASES, CASES[0]], tmp_path)


def test_ids_of_one_hash_are_told_apart(tmp_path):
    """Keys are lengths, so five of six ids share one: a lookup that believes the hash would give the first case."""
    names = ("a", "b", "c", "dd", "e", "f")
    made = CaseTable.build([replace(CASES[0], case_id=name, prompt=(i,)) for i, name in enumerate(names)], tmp_path)
    index = IdIndex.build(np.array([len(name) for name in names], np.uint64), key=len)
    table = CaseTable(made.batches, index, made.answers)
    assert [table.by_id[name].prompt for name in names] == [(i,) for i in range(6)]
    assert "g" not in table.by_id and "gg" not in table.by_id and "ggg" not in table.by_id


def test_candidates_are_all_rows_of_a_key_in_their_order():
    index = IdIndex.build(np.array([7, 3, 7, 9, 3, 7], np.uint64), key=int)
    assert [list(index.candidates(str(key))) for key in (3, 7, 9, 5)] == [[1, 4], [0, 2, 5], [3], []]
    assert index.ambiguous().tolist() == [4, 2, 5]


def test_a_table_travels_out_of_band(table):
    """As through Ray's object store: the tokens are in the buffers, and nothing of the file is needed."""
    buffers: list[pickle.PickleBuffer] = []
    small = pickle.dumps(table, protocol=5, buffer_callback=buffers.append)
    kept = [bytes(buffer.raw()) for buffer in buffers]
    back = pickle.loads(small, buffers=kept)
    assert list(back) == CASES and back.by_id["ä-Ω-∖"] == CASES[2] and back.longest_sequence == 8
    assert any(np.array([1, 7, 9, 1, 1, 7, 7, 7, 7, 7, 7], np.int32).tobytes() in buffer for buffer in kept)
    assert list(pickle.loads(pickle.dumps(table))) == CASES


def test_cases_are_taken_one_at_a_time(tmp_path, small_batches):
    """While a case is taken, at most the one before it is still alive."""
    alive = 0

    class Counted(tuple):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def cases() -> Iterator[TokenizedCase]:
        nonlocal alive
        for i in range(9):
            assert alive <= 1
            alive += 1
            yield replace(CASES[0], case_id=str(i), prompt=Counted((i, 5)))

    made = CaseTable.build(cases(), tmp_path)
    gc.collect()
    assert alive == 0 and [case.prompt for case in made] == [(i, 5) for i in range(9)]


def test_rows_are_decoded_when_asked_for(table):
    first, again = table[0], table[0]
    assert first == again and first is not again


def test_the_file_has_no_name_and_its_pages_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(record_table, "RELEASE_EVERY", 1)
    made = CaseTable.build(CASES, tmp_path)
    assert os.listdir(tmp_path) == []
    assert [case for _ in range(3) for case in made] == CASES * 3 and [made[i] for i in (0, 2, 2)] == [
        CASES[0],
        CASES[2],
        CASES[2],
    ]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written to .*file"):
        CaseTable.build(CASES, tmp_path / "file")


def test_without_a_home_to_write_to_the_file_lies_with_the_temporary_ones(tmp_path, monkeypatch):
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert list(CaseTable.build(CASES)) == CASES
