"""M0's labels and its reference in one pass, through Ray: helpers, killed ones among them, and set-ups on one cache."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from head import kill_family

from introspect_ray.actors.trial_group import TrialGroup
from introspect_ray.config import override
from introspect_ray.engines import make_engine
from introspect_ray.policy import local_policy
from introspect_ray.runs.kept_sets import pass_set
from introspect_ray.runs.one_pass import start_pass
from introspect_ray.runs.pass_team import RayTeam, work_off
from introspect_ray.runs.setup import label_set
from introspect_ray.training.behavior_pass import BehaviorPass

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
REPO = Path(__file__).parents[2]
RUN = ["steps=2", "batch_size=16", "task.train_cases=1024", "task.test_cases=32", "rollout.engine=transformers",
       "train.token_budget=64", "tracking.backend=jsonl", "--log-level", "info"]  # fmt: skip


def arguments(live, cache: Path) -> tuple:
    return (1, live.cfg.policy, [live.setup.train], str(cache), "float32", 64, "sdpa")


def here(live, cache: Path) -> BehaviorPass:
    return BehaviorPass(local_policy(live.cfg.policy), live.setup.prepared.train, str(cache), "float32", 64, "sdpa")


def ready(team: RayTeam) -> None:
    """Until a started helper has loaded M0."""
    while not team._ready:
        assert team.back(wait=False) == []
        time.sleep(0.05)


def test_labels_of_a_set_up_are_those_of_an_engine(live):
    """Training cases from the pass, held-out ones from vLLM: transformers says the same. Its label set is the only one
    in the cache, no part is left, and another set-up on the cache starts no pass."""
    cfg, prepared = live.cfg, live.setup.prepared
    rollout = override(cfg, {"rollout.engine": "transformers"}).rollout
    engine = make_engine(rollout, prepared.policy_path, max_model_len=prepared.max_model_len)
    m0 = ray.get(live.setup.m0)
    for table in (prepared.train, prepared.test):
        for ours, theirs in zip([m0[one] for one in table.case_ids], engine.label_pairs(table), strict=True):
            assert (ours.cued, ours.ablated, ours.weight_version) == (theirs.cued, theirs.ablated, 0)
            flat = [(*pair.cued_logprobs, *pair.ablated_logprobs) for pair in (ours, theirs)]
            assert flat[0] == pytest.approx(flat[1], abs=1e-4)
    key = label_set(cfg, prepared.tokens_of(cfg.policy), prepared.policy_id, None)
    cache = Path(prepared.cache_uri)
    assert [file.stem for file in (cache / "pairs").glob("*.parquet")] == [pass_set(cfg, key)]
    assert not list(cache.glob("passes/*/*")) and live.setup.reference_path
    tokens = prepared.tokens_of(cfg.policy)
    group = TrialGroup.make([], 0, 0)
    assert start_pass(cfg, prepared, tokens, lambda: key, live.setup.train, group, live.setup.status) is None


def test_a_helper_shares_a_pass_and_a_killed_one_costs_nothing_but_time(live, tmp_path, caplog):
    """What two processes made, of which one died on the way, is what one makes."""
    alone = here(live, tmp_path / "alone")
    for part in alone.missing():
        alone.make(part)
    shared, done = here(live, tmp_path / "shared"), list[int]()
    team = RayTeam([{"num_cpus": 0}, {"num_cpus": 0}], arguments(live, tmp_path / "shared"))
    try:
        team.start()
        ready(team)
        victim = team._started[0]
        os.kill(ray.get(victim.__ray_call__.remote(lambda helper: os.getpid())), signal.SIGKILL)
        with caplog.at_level(logging.WARNING):
            work_off(shared, shared.missing(), team, 1e9, done.append)  # they are started already
    finally:
        team.close()
    assert sum(done) == len(live.setup.prepared.train) and shared.missing() == []
    assert "a helper of the pass over M0 failed" in caplog.text
    files = [sorted((tmp_path / name).glob("passes/*/*.part")) for name in ("alone", "shared")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]] and len(files[0]) >= 8
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def train(out: Path, cache: Path, *more: str) -> tuple[subprocess.Popen, Path]:
    """A job under way, and the file of its output."""
    log = out.with_suffix(".log")
    command = [sys.executable, "jobs/train.py", *RUN, f"output_dir={out}", f"cache_dir={cache}", *more]
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=REPO, stdout=output, stderr=output), log


@pytest.mark.slow
def test_a_killed_set_up_goes_on_where_it_was(tmp_path):
    """1,024 cases in some fifty parts. All processes are killed when a few are there, and the next job computes the
    others; it ends at the weights of one that nobody killed."""
    cache = tmp_path / "cache"
    process, log = train(tmp_path / "killed", cache)
    while process.poll() is None and len(list(cache.glob("passes/*/*.part"))) < 3:
        time.sleep(0.02)
    assert process.poll() is None, log.read_text()
    kill_family(process)
    there = len(list(cache.glob("passes/*/*.part")))
    again, log = train(tmp_path / "killed", cache, "--overwrite")
    assert again.wait(300) == 0, log.read_text()
    found = re.search(r"(\d+) of (\d+) parts of the pass are there", log.read_text())
    assert found and 3 <= int(found[1]) == there < int(found[2]) <= 64
    assert not list(cache.glob("passes/*/*.part")) and len(list(cache.glob("pairs/*.parquet"))) == 1
    whole, log = train(tmp_path / "whole", tmp_path / "other")
    assert whole.wait(300) == 0, log.read_text()
    one, other = (tmp_path / name / "policy" / "model.safetensors" for name in ("killed", "whole"))
    assert one.read_bytes() == other.read_bytes()
