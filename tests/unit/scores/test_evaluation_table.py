"""evaluation/cases.parquet holds all that the metrics need, and what is wrong with a file is said."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from evaluated import cases, random_cases

from introspect_ray.records import Explanation as E
from introspect_ray.scores.evaluation import against_scores, details, evaluate
from introspect_ray.scores.evaluation_table import from_table, read_parquet, recompute, to_parquet, to_table
from tests.damage import flips

CASES = cases("AB BB", "AB AA", [E(True, "B"), None], "uv")
TABLE = to_table(CASES)


@pytest.mark.parametrize("seed", range(10))
def test_cases_and_metrics_survive_the_file(seed):
    """With and without a mask, groups, free text and unparsed explanations; labels with any letters."""
    before = random_cases(seed)
    table = read_parquet(to_parquet(to_table(before)))
    after = from_table(table)
    assert after == before
    assert evaluate(after) == evaluate(before) and details(after) == details(before)
    tested = len(before.of("test"))
    assert recompute(table) == {"cases": tested, **evaluate(before), "against": against_scores(before)}
    assert (tested < 40) == (seed in (3, 7))  # with a dev split
    json.dumps(recompute(table), allow_nan=False)


def test_the_columns():
    side = ["cued", "ablated", "cued_logprobs", "ablated_logprobs", "cued_off_format", "ablated_off_format"]
    each = [*side, "weight_version", "changed", "content"]
    assert TABLE.column_names == [
        "case_id", "question", "split", "group", "metadata", "labels",
        *(f"{policy}.{name}" for policy in ("m0", "policy") for name in each), "said", "said_changed", "said_content",
    ]  # fmt: skip
    assert TABLE.select(["policy.changed", "policy.content", "said_changed", "said_content"]).to_pylist() == [
        {"policy.changed": True, "policy.content": "B", "said_changed": True, "said_content": "B"},
        {"policy.changed": False, "policy.content": "B", "said_changed": None, "said_content": None},
    ]


def test_tables_from_before_questions_and_splits_are_read():
    """Of format 1: each case is a question of its own, and test."""
    old = TABLE.drop_columns(["question", "split"])
    old = old.replace_schema_metadata({**TABLE.schema.metadata, b"format": b"introspect-ray evaluated cases 1"})
    assert from_table(old) == CASES and list(from_table(old).questions) == ["0", "1"]
    assert recompute(old) == recompute(TABLE)


def test_explanations_that_are_valid_by_force_have_no_share_of_unparsed_ones():
    """Neither in the scores nor, once they are read from the file, in those made from it; all others are the same."""
    walked = replace(CASES, decode="trie", parsed=[E(True, "B"), E(False, "B")])
    free = replace(walked, decode="free")
    table = read_parquet(to_parquet(to_table(walked)))
    assert from_table(table) == walked and b"decode" not in to_table(free).schema.metadata
    scores, usual = recompute(table)["explanation"], recompute(to_table(free))["explanation"]
    assert [scores[who].pop("unparsed") for who in ("orig", "self")] == [None, None]
    assert [usual[who].pop("unparsed") for who in ("orig", "self")] == [0.0, 0.0]
    assert scores == usual
    with pytest.raises(ValueError, match="not as 'beam'"):
        replace(CASES, decode="beam")


def test_columns_that_others_added_are_no_matter():
    assert from_table(TABLE.append_column("my_verdict", pa.array([1, 2]))) == CASES


def changed(name: str, values: pa.Array) -> pa.Table:
    return TABLE.set_column(TABLE.column_names.index(name), name, values)


@pytest.mark.parametrize(
    "table,message",
    [
        (pa.table({"a": [1]}), "its metadata says format '' instead of 'introspect-ray evaluated cases 2'"),
        (
            TABLE.replace_schema_metadata({"format": "introspect-ray pairs 1"}),
            "format 'introspect-ray pairs 1' instead",
        ),
        (TABLE.replace_schema_metadata({"format": "introspect-ray evaluated cases 2"}), 'no JSON list "policies"'),
        (TABLE.drop_columns(["said", "m0.cued"]), "lacks 2 columns: m0.cued, said"),
        (TABLE.drop_columns(["question", "split"]), "lacks 2 columns: question, split"),
        (changed("split", pa.array(["test", "train"])), "they hold .'test', 'train'."),
        (TABLE.append_column("m0.cued_text", pa.array(["", ""])), "lacks 1 columns: m0.ablated_text"),
        (changed("case_id", pa.array([0, 1])), "column case_id holds int64, not string"),
        (changed("m0.cued", pa.array(["A", None])), "column m0.cued has 1 nulls"),
        (changed("m0.ablated", pa.array(["B", "B"])), r"case '1': m0.changed .* \(False, 'A'\), .* give \(True, 'B'\)"),
        (changed("said_changed", pa.array([None, True])), "case '0': one of said_changed and said_content is null"),
        (TABLE.append_column("from_second", pa.array([True, True])), "need the pairs of 'second'"),
        (TABLE.slice(0, 0), "at least one"),
    ],
)
def test_a_foreign_or_incomplete_table_is_named(table, message):
    with pytest.raises(ValueError, match=message):
        recompute(table)


def test_a_flipped_bit_never_changes_what_is_read():
    """300 over the whole file, footer and headers too."""
    for _, damaged in flips(to_parquet(to_table(random_cases(0))), 300):
        with pytest.raises(ValueError, match=r"^no readable Parquet file \([^\n]*\): restore the file from a copy, or"):
            read_parquet(damaged)


@pytest.mark.parametrize("data", [b"", b"no Parquet at all", to_parquet(TABLE)[:-20]])
def test_other_bytes_are_no_parquet_file(data):
    with pytest.raises(ValueError, match="no readable Parquet file"):
        read_parquet(data)
