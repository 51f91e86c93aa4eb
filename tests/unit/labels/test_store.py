"""Labels and pairs are read back exactly as they were written, locally and on S3."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from introspect_ray.config import RolloutConfig
from introspect_ray.errors import UserError
from introspect_ray.judges import JudgeReport
from introspect_ray.labels.label_sets import label_set_key, load_pairs, save_pairs
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.labels.reports import load_report, save_report
from introspect_ray.labels.store import (
    LABEL_SCHEMA,
    LabelCounts,
    LabelWriter,
    count_labels,
    labels_from_table,
    labels_to_table,
    read_labels,
    read_tables,
    truncate_labels,
)
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance, TokenizedCase
from introspect_ray.storage import open_store


def label(step: int, case: str = "c", *, flipped: bool = False, ablated_version: int | None = None) -> Label:
    version = max(step - 1, 0)
    ablated = version if ablated_version is None else ablated_version
    provenance = Provenance("online", "organism", version, ablated, seed=7, step=step, flipped=flipped, draw=0.25)
    explanation = Explanation(True, "C") if flipped else Explanation(False, "B")
    return Label(case, explanation, Explanation(False, "B"), provenance)


FIXED = Label("c", Explanation(False, "A"), None, Provenance("fixed", "organism", 0, 0, 7, -1, False, math.nan))


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("s3_env") if request.param == "s3" else str(tmp_path / "labels")


def test_a_label_keeps_every_field_in_arrow() -> None:
    table = labels_to_table([label(3, "mmlu-17", flipped=True), FIXED])
    assert table.schema.equals(LABEL_SCHEMA)
    first, second = table.to_pylist()
    assert first == {
        "case_id": "mmlu-17",
        "changed": True,
        "content": "C",
        "current_changed": False,
        "current_content": "B",
        "rule": "online",
        "source_model": "organism",
        "cued_version": 2,
        "ablated_version": 2,
        "seed": 7,
        "step": 3,
        "flipped": True,
        "draw": 0.25,
        "judge": "",
        "calibration": "",
    }
    assert second["current_changed"] is None and second["current_content"] is None
    assert second["step"] == -1 and math.isnan(second["draw"])
    back = labels_from_table(table)
    assert back[0] == label(3, "mmlu-17", flipped=True)
    assert back[1].current is None and replace(back[1].provenance, draw=0.0) == replace(FIXED.provenance, draw=0.0)


def test_judge_and_calibration_round_trip() -> None:
    judged = replace(label(3), provenance=replace(label(3).provenance, judge="keyword:refusal:3f", calibration="9a"))
    assert labels_from_table(labels_to_table([judged])) == [judged]


def test_tables_of_version_0_1_are_read_with_the_columns_they_lack(tmp_path: Path) -> None:
    old = labels_to_table([label(3), FIXED]).drop_columns(["judge", "calibration"])
    pq.write_table(old.replace_schema_metadata({"format": "introspect-ray labels 1"}), tmp_path / "fixed.parquet")
    (table,) = read_tables(str(tmp_path))
    assert table.schema.names == LABEL_SCHEMA.names and table["judge"].to_pylist() == ["", ""]
    assert next(read_labels(str(tmp_path))) == label(3)
    assert count_labels(str(tmp_path)).labels == 2


def test_an_empty_table_round_trips() -> None:
    assert labels_from_table(labels_to_table([])) == []


def test_a_flush_is_one_part_with_one_row_group_named_by_its_steps(uri: str) -> None:
    writer = LabelWriter(uri, flush_rows=4)
    given = [label(step, case) for step in range(3) for case in ("a", "b")]
    for step in range(3):
        writer.append(given[2 * step : 2 * step + 2])  # 4 labels are a part; 2 wait for close
    assert open_store(uri).list() == ["steps-00000000-00000001.parquet"]
    writer.close()
    writer.close()  # nothing is left to write
    assert open_store(uri).list() == ["steps-00000000-00000001.parquet", "steps-00000002-00000002.parquet"]
    assert [len(table) for table in read_tables(uri)] == [4, 2]
    assert list(read_labels(uri)) == given


def test_parts_of_the_same_steps_do_not_replace_each_other(uri: str) -> None:
    for case in ("a", "b"):
        writer = LabelWriter(uri, flush_rows=1)  # the second one is a run that was resumed
        writer.append([label(5, case)])
    writer.append([label(5, "c")])
    writer.append([FIXED])
    assert open_store(uri).list() == [
        "fixed.parquet",
        "steps-00000005-00000005.1.parquet",
        "steps-00000005-00000005.2.parquet",
        "steps-00000005-00000005.parquet",
    ]
    assert sorted(found.case_id for found in read_labels(uri) if found.provenance.step == 5) == ["a", "b", "c"]


def test_a_large_part_has_one_row_group(tmp_path: Path) -> None:
    writer = LabelWriter(str(tmp_path), flush_rows=5000)
    writer.append([label(step) for step in range(5000)])
    (part,) = tmp_path.iterdir()
    assert pq.ParquetFile(part).num_row_groups == 1


def test_truncation_drops_what_a_resumed_run_makes_again(uri: str) -> None:
    writer = LabelWriter(uri, flush_rows=2)
    for step in range(6):  # parts of steps 0-1, 2-3, 4-5
        writer.append([label(step)])
    assert truncate_labels(uri, 3) == 3
    assert [found.provenance.step for found in read_labels(uri)] == [0, 1, 2]
    assert open_store(uri).list() == ["steps-00000000-00000001.parquet", "steps-00000002-00000003.parquet"]


def test_counts_of_a_table_by_hand(uri: str) -> None:
    """Six labels in three parts: five sampled, three agree (one differs in *changed* alone), one split pair."""
    other = replace(label(5), explanation=Explanation(True, "B"))
    writer = LabelWriter(uri, flush_rows=2)
    for pair in ((label(3), label(4, ablated_version=2)), (label(4), label(5, flipped=True)), (FIXED, other)):
        writer.append(pair)
    writer.close()
    found = count_labels(uri)
    assert found == LabelCounts(labels=6, sampled=5, agreeing=3, split_pairs=1) and found.agreement == 3 / 5


def test_counts_of_labels_without_a_pair_are_no_agreement(tmp_path: Path) -> None:
    writer = LabelWriter(str(tmp_path))
    writer.append([FIXED])
    writer.close()
    assert count_labels(str(tmp_path)).agreement is None


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "steps-00000000-00000000.parquet").write_bytes(b"not parquet")
    with pytest.raises(
        UserError, match=r"steps-00000000-00000000.parquet is damaged .*: restore it from a copy, or make the whole"
    ):
        list(read_tables(str(tmp_path)))


PAIRS = [
    BehaviorPair("mmlu-17", "A", "B", (-0.1, -2.4), (-1.9, -0.2), False, True, 3),
    BehaviorPair("mmlu-18", "B", "B", (-math.inf, 0.0), (-1e-300, -700.5), True, False, 3),
]
CASE = TokenizedCase(
    "mmlu-17", ("A", "B"), ((10,), (11,)), (1, 7, 9), (1, 7), (1, 7, 9, 4), {Explanation(False, "A"): (20, 2)}
)


def test_label_sets_round_trip(uri: str) -> None:
    assert load_pairs(uri, "k") is None
    save_pairs(uri, "k", PairTable.build(PAIRS))
    save_pairs(uri, "k", PairTable.build(PAIRS))  # a second writer
    assert list(load_pairs(uri, "k")) == PAIRS
    assert load_pairs(uri, "other") is None
    assert open_store(uri).list() == ["pairs/k.parquet"]


def test_a_label_set_keeps_its_judges_report(uri: str) -> None:
    report = JudgeReport("keyword:refusal:3f", 8, 1, "Well.", None)
    assert load_report(uri, "k") is None
    save_report(uri, "k", report)
    assert load_report(uri, "k") == report and load_pairs(uri, "k") is None


def test_the_key_depends_on_what_decides_the_pairs_alone() -> None:
    base = RolloutConfig()
    key = label_set_key("policy", [CASE], base)
    assert key == label_set_key("policy", [replace(CASE)], RolloutConfig(num_actors=4, sync_every=2))
    assert key == label_set_key("policy", [CASE], RolloutConfig(engine="learner"))  # the actors label M0, with vLLM
    others = [
        label_set_key("other policy", [CASE], base),
        label_set_key("policy", [CASE, CASE], base),
        label_set_key("policy", [replace(CASE, prompt=(1, 7, 8))], base),
        label_set_key("policy", [replace(CASE, ablated=(1, 8))], base),
        label_set_key("policy", [replace(CASE, prompt=(1, 7), ablated=(9, 1, 7))], base),  # same tokens, cut elsewhere
        label_set_key("policy", [CASE], RolloutConfig(engine="transformers")),
        label_set_key("policy", [CASE], RolloutConfig(dtype="bfloat16")),
        label_set_key("policy", [CASE], RolloutConfig(group_size=32)),
    ]
    assert len({key, *others}) == 9


def test_sets_of_one_token_labels_keep_the_names_they_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The literal name was computed by the code from before labels could have several tokens."""
    monkeypatch.setattr("introspect_ray.labels.label_sets.engine_version", lambda engine: "vllm 0.0.0")
    assert label_set_key("policy", [CASE], RolloutConfig()) == "c61f0d8bce200fbd21b74062482bad9d"
    assert label_set_key("policy", [CASE], RolloutConfig(), "keyword:refusal:3f") == "c61f0d8bce200fbd21b74062482bad9d"


def test_the_key_depends_on_how_other_answers_are_read() -> None:
    long = replace(CASE, label_tokens=((10,), (11, 12)))
    free = replace(CASE, label_tokens=(), max_response=8)
    keys = [
        label_set_key("policy", [CASE], RolloutConfig()),
        label_set_key("policy", [long], RolloutConfig()),
        label_set_key("policy", [replace(CASE, label_tokens=((10, 11), (12,)))], RolloutConfig()),
        label_set_key("policy", [free], RolloutConfig(), "keyword:refusal:3f"),
        label_set_key("policy", [free], RolloutConfig(), "keyword:refusal:40"),
        label_set_key("policy", [replace(free, max_response=9)], RolloutConfig(), "keyword:refusal:3f"),
    ]
    assert len(set(keys)) == 6
