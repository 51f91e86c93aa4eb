"""No damage to label tables and label sets is read as labels; what a cache can make again is made again."""

from __future__ import annotations

import json

import pytest

from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError
from introspect_ray.judges import JudgeReport
from introspect_ray.labels.label_sets import load_pairs, save_pairs
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.labels.reports import load_report, save_report
from introspect_ray.labels.store import LabelWriter, count_labels, read_labels, truncate_labels
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance
from introspect_ray.runs.kept_sets import kept_set
from introspect_ray.storage import open_store
from tests.damage import cuts, flips

PAIRS = [BehaviorPair(f"c{i}", "A", "B", (-0.1, -2.4), (-1.9, -0.2), False, True, 0) for i in range(100)]
FREE = [BehaviorPair(f"c{i}", "refuse", "comply", (), (), False, False, 0, (7,), (8, i)) for i in range(100)]
LABELS = [
    Label(f"c{i}", Explanation(True, "B"), None, Provenance("online", "organism", i, i, 7, i, False, 0.25))
    for i in range(100)
]
REPORT = JudgeReport("keyword:refusal:3f", 200, 1, "Well.", None)


def test_a_damaged_label_part_is_named_by_every_reader(tmp_path):
    """The audit reads all columns, the totals some, and a run that is resumed reads parts of earlier steps too."""
    writer, store = LabelWriter(str(tmp_path)), open_store(tmp_path)
    writer.append(LABELS)
    writer.close()
    (name,) = store.list()
    whole, readers = store.read_bytes(name), (read_labels, count_labels, lambda uri: truncate_labels(uri, 1000))
    for i, damaged in enumerate([*(data for _, data in flips(whole, 250)), *cuts(whole, 20)]):
        store.write_bytes(name, damaged)
        with pytest.raises(UserError, match=rf"^\S*{name} is damaged \([^\n]*\): restore it from a copy, or make"):
            list(readers[i % 3](str(tmp_path)) or ())


def test_a_damaged_label_set_is_made_again(tmp_path, caplog):
    """Of 200 flips, 158 were read silently before there were checksums."""
    save_pairs(str(tmp_path), "k", PairTable.build(PAIRS))
    store = open_store(tmp_path)
    (name,) = store.list()
    whole = store.read_bytes(name)
    for damaged in [*(data for _, data in flips(whole, 200)), *cuts(whole, 20)]:
        store.write_bytes(name, damaged)
        caplog.clear()
        assert load_pairs(str(tmp_path), "k") is None and f"{name} is damaged (" in caplog.text
    save_pairs(str(tmp_path), "k", PairTable.build(PAIRS))
    assert list(load_pairs(str(tmp_path), "k")) == PAIRS
    store.write_bytes("pairs/other.parquet", whole)
    assert load_pairs(str(tmp_path), "other") is None and "another label set under this name" in caplog.text


def test_a_set_whose_report_is_damaged_or_gone_is_made_again(tmp_path, capsys):
    """Without it, free responses on which no judge had a verdict would pass for read ones."""
    uri, cfg, store = str(tmp_path), RunConfig(), open_store(tmp_path)
    save_pairs(uri, "k", PairTable.build(FREE))
    save_report(uri, "k", REPORT)
    assert kept_set(cfg, uri, "k")[1] == REPORT
    whole = store.read_bytes("pairs/k.judges.json")
    same = json.loads(whole)
    for damaged in [*(data for _, data in flips(whole, len(whole))), *cuts(whole, 20)]:
        store.write_bytes("pairs/k.judges.json", damaged)
        try:
            unharmed = json.loads(damaged) == same  # e.g. a line break that became another white space
        except ValueError:
            unharmed = False
        assert (kept_set(cfg, uri, "k") is None) is not unharmed
    store.delete_prefix("pairs/k.judges.json")
    assert kept_set(cfg, uri, "k") is None and "is missing: the set is made again" in capsys.readouterr().err
    save_pairs(uri, "closed", PairTable.build(PAIRS))
    assert kept_set(cfg, uri, "closed")[1] is None


def test_a_report_of_version_0_3_is_read(tmp_path):
    open_store(tmp_path).write_json("pairs/k.judges.json", REPORT.summary())
    assert load_report(str(tmp_path), "k") == REPORT
