"""The relabeler: the agreement alarm, and the order of pairs that several ranks label."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from introspect_ray.actors.relabeler import Relabeler, unshard
from introspect_ray.config import RunConfig
from introspect_ray.engines.protocol import PromptTokens
from introspect_ray.errors import AlarmError
from introspect_ray.labels import rules
from introspect_ray.records import BehaviorPair, StepLabels
from introspect_ray.schedule import plan_ids


def test_the_agreement_alarm_is_raised_where_labels_are_fetched(tmp_path, monkeypatch):
    """The rule flips every label although ν = 0.9 is requested: P(K = 0 of 16) = 1e-16."""
    cases = {f"c{i}": ("A", "B") for i in range(16)}
    cfg = RunConfig.model_validate({"batch_size": 16, "steps": 1, "supervision": {"rule": "online", "agreement": 0.9}})
    true_rule = rules.online_label
    monkeypatch.setattr(rules, "online_label", lambda *a, **k: true_rule(*a, **{**k, "agreement": 0.0}))

    async def collect(groups, *_):
        return await asyncio.gather(*groups)

    pool = SimpleNamespace(collect=collect)
    maker = Relabeler(cfg, rules.Sources(cases, "m", {}), str(tmp_path), 1, pool)

    async def step() -> StepLabels:
        async def group():
            ids = plan_ids(cfg, list(cases), 0)
            pairs = [BehaviorPair(i, "A", "B", (), (), False, False, 0) for i in ids]
            return SimpleNamespace(pairs=pairs, seconds=0.0, idle_s=0.0, prompt_tokens=PromptTokens())

        await maker.relabel(0, 0, None, [], [group()])
        return await maker.fetch(0, 0)

    with pytest.raises(AlarmError, match=r"0 of 16 labels .* supervision\.agreement=0\.9 allows"):
        asyncio.run(step())
    assert len(list(tmp_path.iterdir())) == 1  # the labels are there to be audited


def test_unshard_undoes_the_dealing():
    """Five pairs on two ranks: 0 2 4 and 1 3. The ranks may come in any order, and one may have none."""
    assert unshard({1: list("bd"), 0: list("ace")}) == list("abcde")
    assert unshard({0: ["a"], 1: []}) == ["a"]
    with pytest.raises(ValueError, match="extended slice"):
        unshard({0: list("abc"), 1: list("d")})
