"""task.balance: which held-out cases stay."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.tasks import load_cases
from introspect_ray.tasks.balance import balanced

VALUES = ["NTA", "NTA", "YTA", None, "NTA", "YTA"]
ORDER = np.array([5, 1, 3, 0, 4, 2], np.uint64)


@pytest.mark.parametrize(
    "limit,kept",
    [(None, [1, 2, 4, 5]), (4, [1, 2, 4, 5]), (2, [1, 5])],  # NTA by order: 1, 4, 0; YTA: 5, 2
)
def test_the_smallest_of_each_value_stay(limit, kept):
    mask, line = balanced(VALUES, ORDER, limit, "verdict")
    assert np.flatnonzero(mask).tolist() == kept
    assert line == (
        "task.balance=verdict: of 6 held-out cases left out 1 of the more frequent values (NTA 3, YTA 2) and 1 without "
        "an answer there"
    )


@pytest.mark.parametrize(
    "values,limit,says",
    [
        (["NTA", "NTA"], None, r"have 1 values \(NTA\), two are needed"),
        ([None, None], None, "has an answer to none of the 2 held-out cases: let M0 answer"),
        (["NTA", "YTA"], 3, r"task.test_cases=3 cannot be balanced over 2 values .* a multiple of 2"),
        (["NTA", "YTA", "NTA"], 4, r"leaves 2 held-out cases, 1 of each value"),
    ],
)
def test_what_cannot_be_balanced_is_refused(values, limit, says):
    with pytest.raises(UserError, match=says):
        balanced(values, np.arange(len(values), dtype=np.uint64), limit, "verdict")


def case(number, **metadata):
    turns = [[{"role": "user", "content": f"Question {number}{cue}"}] for cue in (" Hint", "")]
    return {"id": str(number), "messages": turns[0], "ablated_messages": turns[1], "labels": ["NTA", "YTA"],
            "metadata": metadata}  # fmt: skip


def files(tmp_path):
    """Three held-out cases of verdict NTA, one of YTA; M0 says YTA on 0 and 1, NTA on 2, and 3 it was not asked."""
    verdicts = ["NTA", "NTA", "NTA", "YTA"]
    for name, rows in {
        "train": [case(9)],
        "test": [case(number, verdict=verdict) for number, verdict in enumerate(verdicts)],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {"case_id": ["0", "1", "2"], "ablated": ["YTA", "YTA", "NTA"]}
    pq.write_table(pa.table(answers), tmp_path / "labels.parquet")
    answers = {"case_id": answers["case_id"], "m0.ablated": answers["ablated"], "policy.ablated": ["NTA"] * 3}
    pq.write_table(pa.table(answers), tmp_path / "evaluated.parquet")
    return {"name": "jsonl", "path": str(tmp_path / "train.jsonl"), "test_path": str(tmp_path / "test.jsonl")}


def test_held_out_cases_are_balanced_over_their_metadata(tmp_path, caplog):
    train, test = load_cases(TaskConfig(**files(tmp_path), balance="verdict"))
    assert len(train) == 1 and sorted(one.metadata["verdict"] for one in test) == ["NTA", "YTA"]
    assert "of 4 held-out cases left out 2 of the more frequent values (NTA 3, YTA 1)" in caplog.text


@pytest.mark.parametrize("name", ["labels.parquet", "evaluated.parquet"])
def test_held_out_cases_are_balanced_over_what_m0_answered(tmp_path, name):
    """One of cases 0 and 1 (YTA), and case 2 (NTA)."""
    _, test = load_cases(TaskConfig(**files(tmp_path), balance=str(tmp_path / name)))
    ids = [one.case_id for one in test]
    assert len(ids) == 2 and ids[1] == "2"


def test_a_case_without_the_metadata_is_named(tmp_path):
    with pytest.raises(UserError, match=r"balance=mood, but the metadata of case '0' has no 'mood' \(has verdict\)"):
        load_cases(TaskConfig(**files(tmp_path), balance="mood"))
