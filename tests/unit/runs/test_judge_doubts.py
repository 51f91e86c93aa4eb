"""What a run says about two judges that differ, and about cached replies without a verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from introspect_ray.config import load_config
from introspect_ray.errors import AlarmError
from introspect_ray.judges.agreement import JudgeAgreement, JudgeReport
from introspect_ray.labels.reports import save_report
from introspect_ray.runs.judging import doubts
from introspect_ray.runs.kept_sets import _kept_report


def test_only_judges_that_differ_or_say_nothing_are_named():
    """Of five replies the second judge leaves out one; of the other four it says refuse where the first says comply
    once."""
    agree = JudgeAgreement(2, (0, 0), {("refuse", "refuse"): 2}, ()).summary()
    differ = JudgeAgreement(5, (0, 1), {("refuse", "refuse"): 3, ("comply", "refuse"): 1}, ()).summary()
    judged = [
        {"policy": "one judge", "agreement": None},
        {"policy": "two that agree", "agreement": agree},
        {"policy": "two that differ", "agreement": differ},
    ]
    (line,) = doubts(judged)
    assert line.startswith("two that differ: the two judges differ on 1 of 4 replies; the second gave no verdict on 1 ")


def test_the_bound_of_this_run_holds_for_a_label_set_that_another_one_made(tmp_path: Path):
    """1 of 10 replies has no verdict: within the bound of the run that labelled, beyond the default of 5 %."""
    report = JudgeReport("llm:x:1", 10, 1, "well", None)
    save_report(str(tmp_path), "key", report)
    assert _kept_report(load_config(None, {"judge.max_unjudged": 0.1}), str(tmp_path), "key") == report
    with pytest.raises(AlarmError, match="no verdict on 1 of 10 replies"):
        _kept_report(load_config(None, {}), str(tmp_path), "key")
    assert _kept_report(load_config(None, {}), str(tmp_path), "closed labels") is None
