"""The loop through its real parts: vLLM engine, relabeler, Ray Train worker, on the bundled organism."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from introspect_ray.config import override
from introspect_ray.engines import make_engine
from introspect_ray.labels.rules import draw
from introspect_ray.labels.store import read_labels
from introspect_ray.schedule import label_version, step_plan
from introspect_ray.scores.summary import check_summary

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "policy" / "model.safetensors")


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


NU = 0.6
ONLINE = {"supervision__rule": "online", "supervision__agreement": NU}


@pytest.fixture(scope="module", params=[0, 1])
def by_the_pool(request, live):
    """(lag, summary, rows, labels) of a run that the vLLM engine labelled."""
    summary, rows, out = live.train(**ONLINE, lag=request.param)
    return request.param, summary, rows, list(read_labels(str(out / "labels")))


def test_online_labels_come_from_the_version_they_name(live, by_the_pool):
    """Every label is recomputed from its provenance: version, ν draw, flip; nothing but the pair itself is believed."""
    lag, summary, rows, labels = by_the_pool
    check_summary(summary)
    ids = [case.case_id for case in live.setup.prepared.train]
    m0 = ray.get(live.setup.m0)
    assert [label.case_id for label in labels] == [ids[i] for t in range(4) for i in step_plan(0, t, len(ids), 24)]
    for label in labels:
        made = label.provenance
        assert made.cued_version == made.ablated_version == max(0, made.step - lag)
        assert made.draw == draw(0, made.step, label.case_id, "agreement")
        assert made.flipped == (made.draw >= NU) == (label.explanation != label.current)
        if made.cued_version == 0:  # labels of version 0 are M0's: a label made too late would differ
            assert label.current == m0[label.case_id].explanation
    agreeing = sum(label.explanation == label.current for label in labels) / len(labels)
    assert summary["labels"]["realised_at_labelling"] == agreeing
    assert summary["labels"]["requested_agreement"] == NU
    assert summary["labels"]["split_pairs"] == 0
    longest = max(len(case.prompt) for case in live.setup.prepared.train)
    assert longest < 32 and [row["prefix_hit_rate"] for row in rows] == [0.0] * 4  # no prompt fills a cache block
    assert live.setup.prefix_hit_rate == 0.0
    assert [row["lag"] for row in rows] == [t - label_version(t, lag, 1) for t in range(4)]
    if lag == 0:  # what the trainer reads off its forward is what the engine sampled: same weights, same numbers
        assert all(row["realised_at_consumption"] == row["realised_at_labelling"] for row in rows)
        assert all(row["engine_gap"] < 1e-4 for row in rows)


def test_the_learner_labels_as_the_engine_does(live, by_the_pool):
    """rollout.engine=learner on the same engines. One worker: the same table, provenance and all. Two workers at
    lag 1: the same cases, versions and draws; their weights differ by rounding, so a near-tie may fall otherwise."""
    lag, _, theirs, pool = by_the_pool
    summary, rows, out = live.train(**ONLINE, lag=lag, rollout__engine="learner", train__num_workers=1 + lag)
    check_summary(summary)
    labels = list(read_labels(str(out / "labels")))
    if lag == 0:
        assert labels == pool
        assert all(row["engine_gap"] < 1e-4 for row in rows)  # two forwards of the trainer on the same weights
    assert [(x.case_id, x.provenance) for x in labels] == [(x.case_id, x.provenance) for x in pool]
    assert sum(x.current == y.current for x, y in zip(labels, pool, strict=True)) >= 0.95 * len(pool)
    assert [row["off_format"] for row in rows] == pytest.approx([row["off_format"] for row in theirs], abs=0.05)
    assert all(row["rollout_idle_s"] == 0 and row["prefix_hit_rate"] is None for row in rows)  # no engine took part
    assert 0 < summary["timing_s"]["rollout"] < sum(row["step_s"] for row in rows)


def test_the_exported_policy_is_the_evaluated_one(live):
    """Behaviour EM recomputed by another engine (transformers) on the exported folder equals the summary's."""
    summary, rows, out = live.train(kl_weight=0.0)
    timing = json.loads((out / "details.json").read_text())["timing_s"]
    assert timing.keys() == {"learner", "export", "ray_train", "eval"} and min(timing.values()) > 0
    whole = summary["timing_s"]["total"] - sum(live.setup.seconds.values())
    assert sum(timing.values()) + sum(row["step_s"] for row in rows) < whole  # the last delivery is in neither
    rollout = override(live.cfg, {"rollout.engine": "transformers"}).rollout
    prepared = live.setup.prepared
    engine = make_engine(rollout, str(out / "policy"), max_model_len=prepared.max_model_len)
    pairs = engine.label_pairs(prepared.test)
    same = [p.cued == q.cued and p.ablated == q.ablated for p, q in zip(pairs, live.setup.m0_test, strict=True)]
    assert summary["behavior"]["em"] == sum(same) / len(same)
    assert summary["supervision"] == {"rule": "fixed", "agreement": None, "mixing_ratio": None}
    assert summary["cases"] == {"train": 96, "test": 64, "questions": 62} and summary["dev"] is None


def test_same_seed_same_bits_whatever_the_timing(live):
    """An overlapped run (lag 1) twice: same labels, bit-identical weights. Another seed: other weights."""
    runs = [live.train(supervision__rule="online", supervision__agreement=0.8, lag=1, seed=s)[2] for s in (3, 3, 4)]
    tables = [list(read_labels(str(out / "labels"))) for out in runs]
    assert tables[0] == tables[1]
    assert same_bits(weights(runs[0]), weights(runs[1]))
    assert not same_bits(weights(runs[0]), weights(runs[2]))


def test_two_workers_equal_one(live):
    """FSDP2 on two gloo ranks against one process; 25 cases do not divide by two, so the shards are uneven."""
    one, _, first = live.train(batch_size=25)
    two, _, second = live.train(batch_size=25, train__num_workers=2)
    a, b = weights(first), weights(second)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4
    assert one["behavior"] == two["behavior"]
