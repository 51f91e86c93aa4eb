"""What decides a run's results is in its identity, and what does not is not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from introspect_ray.config import RunConfig, override
from introspect_ray.errors import UserError
from introspect_ray.labels.calibration import Calibration
from introspect_ray.labels.reading import Reading
from introspect_ray.records import Explanation, TokenizedCase
from introspect_ray.runs.identity import check_resume, run_identity
from introspect_ray.storage import open_store

EXPLANATIONS = {Explanation(changed, label): (7, 2) for changed in (False, True) for label in "AB"}
CASE = TokenizedCase("c", ("A", "B"), ((1,), (2,)), (3, 4), (3,), (3, 5), EXPLANATIONS)


def prepared(case: TokenizedCase = CASE, **ids: str) -> SimpleNamespace:
    return SimpleNamespace(
        **{"policy_id": "p", "reference_id": "p", "second_id": None, "auxiliary": None, **ids}, train=[case]
    )


@pytest.mark.parametrize(
    "other",
    [
        prepared(reference_id="r"),
        prepared(second_id="s"),
        prepared(replace(CASE, label_tokens=((1,), (2, 3)))),
        prepared(replace(CASE, label_tokens=(), max_response=8)),
        prepared(replace(CASE, explanations={**EXPLANATIONS, Explanation(True, "A"): (8, 2)})),
    ],
    ids=["reference policy", "second policy", "tokens of a label", "free text", "wording"],
)
def test_other_content_is_another_run(other):
    assert run_identity(RunConfig(), prepared()) != run_identity(RunConfig(), other)


def test_another_judge_behind_the_same_keys_is_another_run():
    """Its words or its instruction are in a file."""
    one, other = (run_identity(RunConfig(), prepared(), Reading(judge=f"keyword:w:{i}")) for i in (1, 2))
    assert {key for key in one if one[key] != other[key]} == {"content of judge"}


def test_other_offsets_of_the_calibration_are_another_run():
    """M0's labels may be made anew before a run goes on: by another version of the engine, or without the cache."""
    readings = (Reading(Calibration({("A", "B"): {"cued": (-1.0, i), "ablated": (-1.0, -2.0)}})) for i in (-2.0, -2.1))
    one, other = (run_identity(RunConfig(), prepared(), reading) for reading in readings)
    assert {key for key in one if one[key] != other[key]} == {"content of calibration"}


@pytest.mark.parametrize(
    ("key", "value", "decides"),
    [
        ("reference_policy", "organism:second", True),
        ("task.calibration", "contextual", True),
        ("loss_normalisation", "sequence", True),
        ("task.changed", "It becomes {label}.", True),
        ("auxiliary.weight", 0.5, True),
        ("judge.labels", ["yes", "no"], True),
        ("judge.patience_s", 1.0, False),
        ("judge.second.model", "other", True),
        ("judge.second.patience_s", 1.0, False),
        ("judge.max_unjudged", 0.5, False),
    ],
)
def test_a_run_goes_on_under_the_keys_that_decide_its_results(tmp_path, key, value, decides):
    judge = {"kind": "llm", "endpoint": "http://localhost:8000/v1", "model": "m"}
    judge["second"] = {**judge, "model": "second"}
    sections = {"judge": judge, "auxiliary": {"path": "a.txt"}}
    before = RunConfig.model_validate({"output_dir": str(tmp_path), **sections})
    open_store(tmp_path).write_json("run.json", before.model_dump(mode="json"))
    now = override(before, {key: value})
    assert (run_identity(before, prepared()) != run_identity(now, prepared())) is decides
    if decides:
        with pytest.raises(UserError, match=key):
            check_resume(now)
    else:
        check_resume(now)
