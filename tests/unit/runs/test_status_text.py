"""What a person who waits reads: `introspect-ray status`, the lines of long phases, and what a cluster lacks."""

from __future__ import annotations

import re
import time

import pytest
from ray.autoscaler.v2.schema import (
    ClusterStatus,
    LaunchRequest,
    NodeInfo,
    PlacementGroupResourceDemand,
    RayTaskActorDemand,
    ResourceDemandSummary,
    ResourceRequestByCount,
    ResourceUsage,
)

from introspect_ray.cli import Arguments
from introspect_ray.errors import UserError
from introspect_ray.runs import status
from introspect_ray.runs.activities import ActivityLines
from introspect_ray.runs.demands import usage_line, waiting_lines
from introspect_ray.runs.lines import activity_line, duration
from introspect_ray.runs.status_text import job_lines

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (184, "3 min 4 s"), (3599.7, "1 h 0 min"), (7260, "2 h 1 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def doing(what: str, since: float, unit: str, total: int, done: int = 0) -> dict:
    return {"what": what, "since": NOW - since, "unit": unit, "total": total, "done": done}


@pytest.mark.parametrize(
    ("activity", "line"),
    [
        # 12,000 in 40 s are 300 a second; 48,000 are left, which take 160 s
        (doing("labels", 40, "case", 60_000, 12_000), "labels: 12,000 of 60,000 cases, 300/s, 2 min 40 s left"),
        (doing("labels", 40, "case", 60_000), "labels: 0 of 60,000 cases after 40 s"),
    ],
)
def test_a_line_on_an_activity(activity, line):
    assert activity_line(activity, NOW) == line


def test_a_phase_gets_a_line_after_15_seconds_and_then_at_growing_intervals():
    """Asked every 5 s: every 15 s up to an age of 150 s, from then on after a tenth of its age at least."""
    said: list[str] = []
    lines = ActivityLines(None, said.append)
    ages = []
    for age in range(0, 226, 5):
        before = len(said)
        lines.show([doing("labels", 0, "case", 10, 1)], NOW + age)
        ages += [age] * (len(said) - before)
    assert ages == [15, 30, 45, 60, 75, 90, 105, 120, 135, 150, 170, 190, 215]


def test_a_short_phase_is_not_mentioned_and_two_are_told_apart():
    said: list[str] = []
    lines = ActivityLines(None, said.append)
    lines.show([doing("labels", 14, "case", 10, 1), doing("reference", 20, "case", 10, 5)], NOW)
    assert said == ["reference: 5 of 10 cases, 0.25/s, 20 s left"]


# --- a job --------------------------------------------------------------------------------------------------------

ABOUT = {
    "output_dir": "runs/sweep", "task": "organism", "policy": "organism", "steps": 300, "pid": 7, "node": "head",
    "started": NOW - 723,
}  # fmt: skip


def test_a_job_before_its_first_step():
    waiting = {"set-up": ["1 of 2 rollout actors need 1 GPU each, since 05:20:11"]}
    doings = [doing("reference of organism", 75, "case", 300, 150)]
    job = {"about": ABOUT, "now": NOW, "runs": {}, "activities": doings, "waiting": waiting}
    first, *rest = job_lines(job)
    began = time.strftime("%H:%M:%S", time.localtime(NOW - 723))
    assert first == f"job        runs/sweep, organism on organism, since {began} (12 min 3 s), driver 7 on head"
    assert rest == [
        "now        reference of organism: 150 of 300 cases, 2/s, 1 min 15 s left",
        "waits      set-up: 1 of 2 rollout actors need 1 GPU each, since 05:20:11",
        "runs       no training step is finished yet",
    ]


def test_a_row_for_each_run():
    done = {"realised_at_labelling": None, "step": 299, "at": NOW - 90, "rate": 3.14159, "checkpoint": None}
    known = {"loss": 0.5234, "explanation_self": 0.61, "explanation_orig": 0.554, "behavior_em": 0.8, "lag": 1}
    runs = {
        "kl=0": {**known, **done},
        "kl=1": {
            **known, "realised_at_labelling": 0.9, "step": 11, "at": NOW - 2, "rate": None,
            "checkpoint": {"step": 10, "bytes": 24_500_000_000, "write_s": 61.0, "stall_s": 2.04},
        },
    }  # fmt: skip
    job = {"about": ABOUT, "now": NOW, "runs": runs, "activities": [], "waiting": {}}
    rows = [re.split(r"  +", line) for line in job_lines(job)[1:]]
    assert rows == [
        ["run", "step", "steps/s", "loss", "self", "orig", "beh", "ν", "lag", "last step", "checkpoint"],
        ["kl=0", "300/300", "3.14", "0.523", "0.61", "0.55", "0.80", "-", "1", "1 min 30 s ago", "-"],
        ["kl=1", "12/300", "-", "0.523", "0.61", "0.55", "0.80", "0.90", "1", "2 s ago",
         "step 10: 24.5 GB in 1 min 1 s, held training up for 2 s"],
    ]  # fmt: skip


# --- the cluster --------------------------------------------------------------------------------------------------


def test_what_a_cluster_lacks():
    """Ray's own record, filled by hand: two actors and a placement group wait, spot nodes are refused, one starts."""
    gpu = ResourceRequestByCount({"GPU": 1.0, "CPU": 2.0}, 2)
    record = ClusterStatus(
        resource_demands=ResourceDemandSummary(
            [PlacementGroupResourceDemand([gpu, ResourceRequestByCount({"CPU": 1.0}, 1)], "ab12:PACK|PENDING")],
            [RayTaskActorDemand([gpu])],
        ),
        pending_launches=[LaunchRequest("p5", "h100", 1, LaunchRequest.Status.PENDING, NOW - 130)],
        failed_launches=[
            LaunchRequest("p5", "h100_spot", 2, LaunchRequest.Status.FAILED, NOW - 300, NOW - 200, "no capacity")
        ],
        pending_nodes=[NodeInfo("p5", "h100", "i-1", "", details="waiting for ssh")],
        failed_nodes=[NodeInfo("p5", "h100", "i-2", "10.0.0.2", failure_detail="NodeTerminated")],
        cluster_resource_usage=[ResourceUsage("CPU", 16, 12), ResourceUsage("node:10.0.0.1", 1, 0)],
        active_nodes=[NodeInfo("m7i", "head", "i-0", "10.0.0.1")],
    )
    assert waiting_lines(record, NOW) == [
        "waits for room: 2 x (CPU 2, GPU 1) (actors or tasks)",
        "waits for room: 2 x (CPU 2, GPU 1) + 1 x (CPU 1) together (placement group, PACK)",
        "node asked for: 1 x h100, 2 min 10 s ago",
        "node starts: h100 i-1, waiting for ssh",
        "node not given: 2 x h100_spot, 3 min 20 s ago: no capacity",
        "node failed: h100 10.0.0.2, NodeTerminated",
    ]
    assert usage_line(record) == "1 node, CPU 12 of 16 in use"
    assert waiting_lines(ClusterStatus(), NOW) == []


# --- the command --------------------------------------------------------------------------------------------------


def ask(**overrides: object) -> None:
    status.status_job(Arguments(None, dict(overrides), False, False, False, {"watch": None}))


def test_no_cluster_no_job_and_a_foreign_key_are_said_in_one_line(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(status, "local_clusters", lambda: [])
    with pytest.raises(UserError, match=r"no Ray cluster runs on this machine: start a job, name a cluster with ray_a"):
        ask()
    with pytest.raises(UserError, match="status has no key 'steps': it takes ray_address=HOST:PORT"):
        ask(steps=3)
    for address, why in (("127.0.0.1:9", "Connection refused"), ("ray://head", "invalid literal")):
        with pytest.raises(
            UserError, match=rf"no Ray cluster at {address}: .*{why}.*; give HOST:PORT of a head as ray_"
        ):
            ask(ray_address=address)
