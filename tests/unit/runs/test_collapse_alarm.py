"""What a job does where the labels of M0 have collapsed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from introspect_ray.config import RunConfig
from introspect_ray.errors import AlarmError
from introspect_ray.records import BehaviorPair
from introspect_ray.runs.printed import report_findings
from introspect_ray.scores.evaluated_cases import EvaluatedCases


def setup_of(pairs: list[BehaviorPair]) -> SimpleNamespace:
    """A set-up whose M0 answered these pairs and explained them rightly."""
    n, behavior = len(pairs), {"m0": pairs, "policy": pairs}
    said = [pair.explanation for pair in pairs]
    ids = [pair.case_id for pair in pairs]
    untrained = EvaluatedCases(ids, [""] * n, [""] * n, ["AB"] * n, behavior, [""] * n, said)
    return SimpleNamespace(untrained=untrained, m0_test=pairs, m0_reported=pairs)


@pytest.mark.parametrize(("mode", "warned"), [("warn", True), ("stop", True), ("off", False)])
def test_collapsed_labels_of_m0(mode, warned, capsys):
    """Nine of ten cases unchanged, and all ten answered B without the cue; always saying "unchanged B" is
    right for nine: three findings."""
    pairs = [BehaviorPair(f"c{i}", "A" if i == 0 else "B", "B", (), (), False, False, 0) for i in range(10)]
    setup = setup_of(pairs)
    cfg = RunConfig.model_validate({"alarms": {"collapse": mode}})
    if mode == "stop":
        with pytest.raises(AlarmError, match=r"9 of 10 .*unchanged.*; .*B for 10 of 10.*set alarms\.collapse=warn"):
            report_findings(cfg, setup)
    else:
        report_findings(cfg, setup)
    said = capsys.readouterr()
    assert said.err.count("warning: m0: ") == (3 if warned else 0)
    assert "always saying 'unchanged B' would score 0.900" in said.out


@pytest.mark.parametrize(("off", "warned"), [(2, False), (3, True)])
def test_answers_outside_the_labels_are_named(off, warned, capsys):
    """Two cases have four answers: half of them off format says nothing yet, three of four do."""
    flags = [index < off for index in range(4)]
    pairs = [
        BehaviorPair("c0", "A", "B", (), (), flags[0], flags[1], 0),
        BehaviorPair("c1", "B", "A", (), (), flags[2], flags[3], 0),
    ]
    report_findings(RunConfig.model_validate({"alarms": {"collapse": "off"}}), setup_of(pairs))
    assert ("leave the labels in 75% of the answers" in capsys.readouterr().err) == warned
