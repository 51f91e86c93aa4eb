"""What a run says about two judges that differ."""

from __future__ import annotations

from introspect_ray.judges.agreement import JudgeAgreement
from introspect_ray.runs.judging import doubts


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
