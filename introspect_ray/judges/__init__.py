"""Judges: free-form responses into a closed set of behaviour labels (refuse / comply), behind one interface.

`make_judge` turns a JudgeConfig into a Judge; `CachedJudge` around it asks for every verdict once; `compare` says how
far two judges agree; `check_unjudged` bounds the replies without a verdict. Within a run, `make_judging` makes both
judges of a config, and a `Panel` turns free responses into behaviour pairs by them.
"""

from introspect_ray.judges.agreement import JudgeAgreement, JudgeReport, check_unjudged, compare, report
from introspect_ray.judges.cache import CachedJudge
from introspect_ray.judges.endpoint import ChatEndpoint
from introspect_ray.judges.keyword import KeywordJudge
from introspect_ray.judges.llm import LLMJudge
from introspect_ray.judges.make import check_judge, judge_labels, make_endpoint, make_judge
from introspect_ray.judges.panel import Judging, Panel, make_judging
from introspect_ray.judges.protocol import Complete, Judge, Reply, Verdict

__all__ = [
    "CachedJudge",
    "ChatEndpoint",
    "Complete",
    "Judge",
    "JudgeAgreement",
    "JudgeReport",
    "Judging",
    "KeywordJudge",
    "LLMJudge",
    "Panel",
    "Reply",
    "Verdict",
    "check_judge",
    "check_unjudged",
    "compare",
    "judge_labels",
    "make_endpoint",
    "make_judge",
    "make_judging",
    "report",
]
