"""Tables of pairs: what goes in comes out, by row and by id."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest

from introspect_ray.labels.pair_table import PAIR_SCHEMA, PairTable
from introspect_ray.records import BehaviorPair

PAIRS = [
    BehaviorPair("mmlu-17", "A", "B", (-0.1, -2.4), (-1.9, -0.2), False, True, 3),
    BehaviorPair("mmlu-18", "B", "B", (-math.inf, 0.0), (), True, False, 4),
    BehaviorPair("free-1", "refuse", "comply", (), (), False, True, 4, (7, 8, 9), ()),
]


def test_pairs_come_back_by_row_and_by_id():
    table = PairTable.build(iter(PAIRS))
    assert list(table) == PAIRS and table.by_id["mmlu-18"] == PAIRS[1] and table[0].explanation == PAIRS[0].explanation
    assert list(pickle.loads(pickle.dumps(table)).by_id.values()) == PAIRS
    arrow = table.arrow()
    assert arrow.schema.equals(PAIR_SCHEMA) and arrow.num_rows == 3
    assert list(PairTable.from_batches(arrow.to_batches(1))) == PAIRS
    assert table[2] == PAIRS[2] and type(table[2].cued_response) is tuple
    with pytest.raises(ValueError, match="'mmlu-17' occurs twice"):
        PairTable.build([*PAIRS, PAIRS[0]])


def test_a_large_table_lies_in_a_file(monkeypatch, tmp_path):
    """More batches than are kept in memory: the same pairs, also after they went to another process."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("introspect_ray.labels.pair_table.BATCHES_IN_MEMORY", 1)
    batches = PairTable.build(PAIRS).arrow().to_batches(1)
    table = PairTable.from_batches(iter(batches))
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert list(table) == PAIRS and table.by_id["free-1"] == PAIRS[2] and table.arrow().num_rows == 3
    assert list(pickle.loads(pickle.dumps(table))) == PAIRS
    with pytest.raises(ValueError, match="'mmlu-17' occurs twice"):
        PairTable.from_batches([*batches, batches[0]])


def test_tables_from_before_free_text_are_read_and_joined_with_newer_ones():
    """A file of "introspect-ray pairs 1" has the first eight columns alone."""
    old = PairTable.build(PAIRS[:2]).arrow().drop_columns(["cued_response", "ablated_response"])
    old = old.replace_schema_metadata({"format": "introspect-ray pairs 1"})
    assert list(PairTable.from_batches(old.to_batches())) == PAIRS[:2]
    joined = PairTable.from_batches([*old.to_batches(), *PairTable.build(PAIRS[2:]).arrow().to_batches()])
    assert list(joined) == PAIRS and joined.arrow().schema.equals(PAIR_SCHEMA)
