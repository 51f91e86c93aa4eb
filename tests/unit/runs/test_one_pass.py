"""Where M0's labels come from, what the engine is asked for beside a pass, and who computes its parts."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from learner_helpers import make_cases, make_pairs, save_model
from ray.util.placement_group import PlacementGroup

from introspect_ray.actors.trial_group import TrialGroup
from introspect_ray.config import load_config
from introspect_ray.config.m0_labels import why_engine_labels
from introspect_ray.errors import AlarmError
from introspect_ray.labels.label_sets import save_pairs
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.records import BehaviorPair
from introspect_ray.runs import one_pass
from introspect_ray.runs.kept_sets import kept_labels, labels_there, pass_set, stored_set
from introspect_ray.runs.one_pass import check_engine, first_asked, helper_options
from introspect_ray.runs.pass_team import room, work_off, worth_helpers
from introspect_ray.training.behavior_pass import BehaviorPass, Part

LORA = {"method": "lora", "train.reference": "live"}
BFLOAT16 = {"train.dtype": "bfloat16", "rollout.dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("flat", "free_text", "why"),
    [
        ({}, False, None),
        ({"supervision.rule": "online", "lag": 1}, False, None),
        (BFLOAT16, False, None),
        ({"reference_policy": "organism"}, False, None),  # the policy itself
        ({}, True, "free text"),
        (LORA, False, "train.reference=live"),
        ({"reference_policy": "organism:second"}, False, "reference_policy"),
        ({"train.dtype": "bfloat16"}, False, "rollout.dtype=float32 is not train.dtype=bfloat16"),
    ],
)
def test_one_pass_serves_closed_labels_of_the_policy_that_is_trained(flat, free_text, why):
    found = why_engine_labels(load_config(None, flat), free_text)
    assert found is None if why is None else why in found


def test_held_out_cases_stay_in_the_groups_that_they_had():
    """Of 100 training cases in groups of 64, the second group has 36 of them and 28 held-out ones."""
    assert [first_asked(train, 64) for train in (0, 1, 63, 64, 65, 100, 128, 129)] == [0, 0, 0, 0, 64, 64, 64, 128]


def pair(*logprobs: float) -> BehaviorPair:
    half = len(logprobs) // 2
    return BehaviorPair("a", "A", "B", logprobs[:half], logprobs[half:], False, False, 0)


def test_an_engine_that_says_something_else_stops_the_set_up():
    """float32: the bound is alarms.engine_gap (0.01). bfloat16: a single logprob may be off by 8 x 0.5 nats, and all by
    0.5 in the root mean square: gaps of 1, 0, 0 and 0 are 0.5, gaps of 1.2, 0, 0 and 0 are 0.6."""
    cfg, coarse = load_config(None, {}), load_config(None, BFLOAT16)
    ours = pair(-1.0, -2.0, -3.0, -4.0)
    check_engine(cfg, [ours], [pair(-1.009, -2.0, -3.0, -4.0)])
    with pytest.raises(AlarmError, match=r"on 1 training cases differ .* by 0.011 nats at most .* are 0.01 and 0.01"):
        check_engine(cfg, [ours], [pair(-1.011, -2.0, -3.0, -4.0)])
    with pytest.raises(AlarmError):
        check_engine(cfg, [ours], [pair(float("nan"), -2.0, -3.0, -4.0)])
    check_engine(load_config(None, {"alarms.engine_gap": None}), [ours], [pair(-9.0, -2.0, -3.0, -4.0)])
    check_engine(coarse, [ours], [pair(-2.0, -2.0, -3.0, -4.0)])
    with pytest.raises(AlarmError, match=r"0\.6 in the root mean square; allowed are 4 and 0\.5"):
        check_engine(coarse, [ours], [pair(-2.2, -2.0, -3.0, -4.0)])


def test_sets_of_a_pass_have_a_name_of_their_own_and_come_first(tmp_path):
    cfg, uri = load_config(None, {}), str(tmp_path)
    name = pass_set(cfg, "k")
    assert len({name, "k", pass_set(cfg, "l"), pass_set(load_config(None, {"train.token_budget": 64}), "k")}) == 4
    assert name == pass_set(load_config(None, {"kl_weight": 0, "train.num_workers": 4, "train.threads": 2}), "k")
    assert stored_set(cfg, uri, "k") is None and kept_labels(cfg, uri, "k") is None
    assert not labels_there(cfg, uri, "k")
    for key, cued in (("k", "A"), (name, "B")):
        save_pairs(uri, key, PairTable.build([replace(pair(-1.0, -2.0), cued=cued)]))
        kept = kept_labels(cfg, uri, "k")
        assert stored_set(cfg, uri, "k") == key and kept is not None and kept[0][0].cued == cued
        assert labels_there(cfg, uri, "k")
    (tmp_path / "pairs" / f"{name}.parquet").write_bytes(b"damaged")
    assert not labels_there(cfg, uri, "k")  # the pass makes it again, whatever else is there
    (tmp_path / "pairs" / f"{name}.parquet").unlink()
    (tmp_path / "pairs" / "k.parquet").write_bytes(b"damaged")
    assert labels_there(cfg, uri, "k")  # the engine makes it again


def test_helpers_stand_where_nothing_else_is_done_yet(monkeypatch):
    """Eight cores: beside the pass the three other training workers and, on CPUs, one per engine. Two cores: one."""

    def count(**flat: object) -> list[float]:
        cfg = load_config(None, {key.replace("__", "."): value for key, value in flat.items()})
        group = TrialGroup(PlacementGroup.empty(), cfg.train.max_workers, cfg.rollout.num_actors, False)
        return [options["num_cpus"] for options in helper_options(cfg, group)]

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(one_pass.os, "cpu_count", lambda: 8)
    assert count() == [0] and count(train__num_workers=4, train__num_cpus=2, rollout__num_actors=2) == [2, 2, 2, 0, 0]
    assert count(train__num_workers=4, train__threads=4) == [1]
    assert count(train__num_workers=2, train__use_gpu=True, rollout__num_gpus=1) == [1]
    monkeypatch.setattr(one_pass.os, "cpu_count", lambda: 2)
    assert count(train__num_workers=4, rollout__num_actors=2) == [1] and count(train__threads=2) == []


def test_helpers_are_worth_their_start():
    """Ten parts of 3 s are 30 s: more than twice a start of 14 s, not of 15 s."""
    assert worth_helpers(3.0, 10, 14.0) and not worth_helpers(3.0, 10, 15.0)


def test_a_helper_has_two_parts_until_few_are_left():
    """Of 9 parts with two helpers each gets two; of 4 one, and none beside the one that it has."""
    assert [room(9, 2, has) for has in (0, 1, 2)] == [2, 1, 0]
    assert [room(4, 2, has) for has in (0, 1, 2)] == [1, 0, 0]
    assert room(0, 2, 0) == 0 and room(1, 1, 0) == 1


class Second:
    """A team of one further pass on the same cache, in this process. It loses the first part that it is given."""

    def __init__(self, work: BehaviorPass) -> None:
        self.work, self.has, self.made, self.starts = work, deque[Part](), list[Part](), 0

    @property
    def busy(self) -> bool:
        return bool(self.has)

    def start(self) -> None:
        self.starts += 1

    def take(self, todo: deque[Part]) -> None:
        if self.starts and todo and not self.has:
            self.has.append(todo.popleft())

    def back(self, *, wait: bool) -> list[tuple[Part, bool]]:
        if not self.has:
            return []
        part, lost = self.has.popleft(), not self.made
        self.made.append(part)
        if not lost:
            self.work.make(part)
        return [(part, not lost)]


def test_a_pass_that_is_shared_gives_what_one_process_gives(tmp_path):
    path, cases = save_model(tmp_path / "policy"), make_cases(12)
    alone = BehaviorPass(path, cases, str(tmp_path / "alone"), batch_tokens=32)
    work, other = (BehaviorPass(path, cases, str(tmp_path / "shared"), batch_tokens=32) for _ in range(2))
    assert len(work.parts) >= 6
    team, done = Second(other), list[int]()
    work_off(work, work.missing(), team, 0.0, done.append)
    assert sum(done) == len(cases) and len(done) == len(work.parts)
    assert team.starts == 1 and len(set(team.made)) >= 2 and work.missing() == []
    assert list(work.pairs()) == list(alone.pairs())
    m0 = make_pairs(cases)
    shared, whole = (one.reference(m0).rsplit("/", 1)[1] for one in (work, alone))
    assert shared == whole
    idle = Second(other)
    work_off(work, work.missing(), idle, 0.0, done.append)
    assert idle.starts == 0 and len(done) == len(work.parts)
