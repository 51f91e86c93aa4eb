"""Evaluations as logs of Inspect AI, read back by Inspect AI itself."""

from __future__ import annotations

import sys

import pytest

from introspect_ray.errors import UserError
from introspect_ray.records import Explanation
from introspect_ray.scores.evaluation import evaluate
from introspect_ray.scores.inspect_log import check_inspect, write_inspect_log
from tests.unit.scores.evaluated import cases, random_cases

NAMES = {"task": "organism", "policy": "runs/a/policy", "created": "2026-11-27T22:00:00+00:00"}


def test_a_missing_package_and_another_ending_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"a\.json: a log of Inspect AI ends in \.eval"):
        check_inspect(tmp_path / "a.json")
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(UserError, match=r"pip install 'introspect-ray\[inspect\]'"):
        write_inspect_log(cases("AA", "AA", [None]), tmp_path / "a.eval", **NAMES)


def test_a_log_is_read_back_with_its_scores(tmp_path):
    """Three cases. E(M_t) = changed B, unchanged C, unchanged A; E(M0) = changed B, unchanged D, unchanged A. Said:
    changed B (right of both), unchanged D (of M0), nothing. Answers equal M0's in cases 0 and 2."""
    log = pytest.importorskip("inspect_ai.log")
    said = [Explanation(True, "B"), Explanation(False, "D"), None]
    evaluated = cases("AB CC AA", "AB DD AA", said, groups="xxy", metadata=["", '{"subject": "s"}', ""])
    question = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q?"})
    write_inspect_log(evaluated, tmp_path / "a.eval", **NAMES, questions={"1": question})

    read = log.read_eval_log(str(tmp_path / "a.eval"))
    assert read.status == "success" and (read.eval.task, read.eval.model) == ("organism", "runs/a/policy")
    values = {name: [sample.scores[name].value for sample in read.samples] for name in ("self", "orig", "behavior")}
    assert values == {"self": ["C", "I", "I"], "orig": ["C", "C", "I"], "behavior": ["C", "I", "C"]}
    totals = {score.name: score.metrics["accuracy"].value for score in read.results.scores}
    assert totals == pytest.approx({"self": 1 / 3, "orig": 2 / 3, "behavior": 2 / 3})
    first, second, third = read.samples
    assert first.input == "0" and first.target == "changed, B" and first.choices == ["A", "B", "C", "D"]
    assert [message.text for message in second.input] == ["Be brief.", "Q?"]
    assert second.metadata["case"] == {"subject": "s"} and second.metadata["m0"]["with_cue"] == "D"
    assert third.scores["self"].answer == "unparseable" and third.metadata["group"] == "y"


def test_totals_are_those_of_the_summary(tmp_path):
    """Free text (5), a mixed run (1) and a reference policy (2): the log counts what `evaluate` counts."""
    log = pytest.importorskip("inspect_ai.log")
    for seed in (1, 2, 5):
        evaluated = random_cases(seed)
        write_inspect_log(evaluated, tmp_path / f"{seed}.eval", **NAMES)
        read, scores = log.read_eval_log(str(tmp_path / f"{seed}.eval")), evaluate(evaluated)
        totals = {score.name: score.metrics["accuracy"].value for score in read.results.scores}
        expected = {name: scores["explanation"][name]["em"] for name in ("self", "orig")}
        assert totals == pytest.approx({**expected, "behavior": scores["behavior"]["em"]})
