"""The learner labels by itself: the pairs of an engine on the same weights, at exactly the lag that was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import learner_helpers as helpers
import pytest
import torch

from introspect_ray.actors.relabeler import Relabeler, unshard
from introspect_ray.config import RunConfig, load_config, override
from introspect_ray.engines import make_engine
from introspect_ray.engines.protocol import Engine, WeightUpdate
from introspect_ray.labels.rules import Sources
from introspect_ray.labels.store import read_labels
from introspect_ray.loop import run
from introspect_ray.records import BehaviorPair, Label, Provenance, StepLabels, TokenizedCase
from introspect_ray.runs.preflight import Prepared, prepare
from introspect_ray.schedule import label_version, plan_ids
from introspect_ray.train.learner import Learner
from introspect_ray.train.reference import build_reference

STEPS, BATCH = 6, 8


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Prepared, str]:
    """(config of an online run that the learner labels, its inputs, M0's reference); 20 cases, so batches straddle."""
    out = tmp_path_factory.mktemp("organism")
    flat = {"output_dir": str(out), "steps": STEPS, "batch_size": BATCH, "task.train_cases": 20, "task.test_cases": 8}
    flat |= {"supervision.rule": "online", "rollout.engine": "learner", "rollout.serving_engine": "transformers"}
    cfg = load_config(None, flat)
    prepared = prepare(cfg)
    return cfg, prepared, build_reference(prepared.policy_path, prepared.train, prepared.cache_uri)


def engine_for(cfg: RunConfig, policy: str, length: int) -> Engine:
    return make_engine(cfg.rollout, policy, max_model_len=length, method=cfg.method, lora_rank=cfg.lora_rank)


def update(learner: Learner, version: int, probe: TokenizedCase) -> WeightUpdate:
    if learner.cfg.method == "full":
        return WeightUpdate(version, "full", learner.weights(), probe)
    return WeightUpdate(version, "adapter", learner.weights(), probe, learner.adapter_config())


def logprobs(pair: BehaviorPair) -> tuple[float, ...]:
    return pair.cued_logprobs + pair.ablated_logprobs


def assert_same(ours: Sequence[BehaviorPair], theirs: Sequence[BehaviorPair]) -> None:
    """Labels, flags and versions equal, logprobs within float32 rounding."""
    for a, b in zip(ours, theirs, strict=True):
        assert logprobs(a) == pytest.approx(logprobs(b), abs=1e-4)
        for name in ("case_id", "cued", "ablated", "cued_off_format", "ablated_off_format", "weight_version"):
            assert getattr(a, name) == getattr(b, name), (name, a, b)


def labelled(cases: Sequence[TokenizedCase], cfg: RunConfig) -> list[Label]:
    how = Provenance("fixed", "m", 0, 0, cfg.seed, 0, False, float("nan"))
    return [Label(case.case_id, next(iter(case.explanations)), None, how) for case in cases]


def m0_pairs(cases: Sequence[TokenizedCase]) -> dict[str, BehaviorPair]:
    return {c.case_id: BehaviorPair(c.case_id, *c.labels[:2], (), (), False, False, 0) for c in cases}


@pytest.mark.parametrize("budget", [2048, 100])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_organism_by_the_learner_and_by_an_engine(organism, method, budget):
    """On weights that training has moved; a small budget makes several forwards. A case may come twice."""
    cfg, prepared, reference = organism
    cfg = override(cfg, {"method": method, "lora_rank": 4, "train.token_budget": budget})
    learner = Learner(cfg, prepared.policy_path, reference, {case.case_id: case for case in prepared.train})
    cases = [*prepared.train, prepared.train[3]]
    before = learner.label_pairs(cases, 0)
    for _ in range(4):
        learner.step(labelled(prepared.train, cfg), m0_pairs(prepared.train))
    engine = engine_for(cfg, prepared.policy_path, prepared.max_model_len)
    assert_same(before, engine.label_pairs(cases))
    engine.load_weights(update(learner, 4, cases[0]))
    after = learner.label_pairs(cases, 4)
    assert_same(after, engine.label_pairs(cases))
    assert after[-1] == after[3]
    assert max(abs(a - b) for p, q in zip(before, after, strict=True) for a, b in zip(logprobs(p), logprobs(q))) > 0.1
    assert learner.label_pairs([], 4) == []


def test_off_format_is_over_the_full_vocabulary(tmp_path):
    """A random policy likes some of its 61 tokens better than the four labels."""
    cases = helpers.make_cases(80)
    policy = helpers.save_model(tmp_path / "model")
    cfg = helpers.make_config(rollout={"engine": "transformers"})
    reference = build_reference(policy, cases, str(tmp_path))
    pairs = Learner(cfg, policy, reference, {c.case_id: c for c in cases}).label_pairs(cases, 0)
    assert_same(pairs, engine_for(cfg, policy, 64).label_pairs(cases))
    assert {(p.cued_off_format, p.ablated_off_format) for p in pairs} >= {(True, False), (False, True)}


class InProcess:
    """The loop's Supply on the real relabeler, in this process. Publishing and requesting are not to happen."""

    def __init__(self, cfg: RunConfig, prepared: Prepared, folder: Path) -> None:
        sources = Sources({case.case_id: case.labels for case in prepared.train}, cfg.policy, {})
        self.relabeler = Relabeler(cfg, sources, str(folder), 1)
        self.loop = asyncio.new_event_loop()
        self.pairs: dict[int, Sequence[BehaviorPair]] = {}

    def offer(self, step: int, version: int, pairs: Sequence[BehaviorPair]) -> None:
        assert step not in self.pairs
        self.pairs[step] = pairs
        self.loop.run_until_complete(self.relabeler.offer(step, version, 0, pairs))

    def fetch(self, step: int) -> StepLabels:
        return self.loop.run_until_complete(self.relabeler.fetch(step, 0))

    def pending(self) -> list[Label]:
        return self.loop.run_until_complete(self.relabeler.pending())

    def finish(self) -> None:
        self.loop.run_until_complete(self.relabeler.finish())
        self.loop.close()


def start(organism, **flat: object) -> tuple[RunConfig, Prepared, Learner]:
    cfg, prepared, reference = organism
    cfg = override(cfg, {key.replace("__", "."): value for key, value in flat.items()})
    learner = Learner(cfg, prepared.policy_path, reference, {case.case_id: case for case in prepared.train})
    return cfg, prepared, learner


def trained(organism, folder: Path, **flat: object) -> tuple[RunConfig, InProcess, list[WeightUpdate]]:
    """A run by the real loop, learner and relabeler: its config, its supply, and the weights of every version."""
    cfg, prepared, learner = start(organism, **flat)
    supply, versions = InProcess(cfg, prepared, folder), [update(learner, 0, prepared.train[0])]

    def report(row: object) -> None:
        versions.append(update(learner, len(versions), prepared.train[0]))

    conductor = SimpleNamespace(report=report)
    seconds = run(cfg, learner, supply, conductor, m0_pairs(prepared.train), prepared.train)
    supply.finish()
    assert seconds["label"] > 0 and seconds["sync"] == 0
    return cfg, supply, versions


@pytest.mark.parametrize(("lag", "sync_every"), [(0, 1), (1, 1), (0, 2), (2, 2)])
def test_every_step_is_labelled_by_exactly_its_version(organism, tmp_path, lag, sync_every):
    """The pairs of each step are those of an engine on the weights of `label_version`, and of no other version."""
    cfg, supply, versions = trained(organism, tmp_path, lag=lag, rollout__sync_every=sync_every)
    prepared = organism[1]
    ids = [case.case_id for case in prepared.train]
    engine = engine_for(cfg, prepared.policy_path, prepared.max_model_len)
    served = []
    for version in versions:
        engine.load_weights(version)
        served.append({pair.case_id: pair for pair in engine.label_pairs(prepared.train)})
    for step in range(STEPS):
        plan, right = plan_ids(cfg, ids, step), label_version(step, lag, sync_every)
        assert_same(supply.pairs[step], [served[right][i] for i in plan])
        for wrong in set(range(STEPS + 1)) - {right}:
            other = [value for i in plan for value in logprobs(served[wrong][i])]
            assert [value for pair in supply.pairs[step] for value in logprobs(pair)] != pytest.approx(other, abs=1e-3)
    labels = list(read_labels(str(tmp_path)))
    assert [label.case_id for label in labels] == [i for step in range(STEPS) for i in plan_ids(cfg, ids, step)]
    for label in labels:
        made = label.provenance
        right = label_version(made.step, lag, sync_every)
        assert (made.rule, made.cued_version, made.ablated_version) == ("online", right, right)
        assert label.explanation == label.current == served[right][label.case_id].explanation


def test_what_is_computed_together_does_not_depend_on_the_lag(organism, tmp_path):
    """Step 1 on version 0, beside step 0 (lag 1) and beside steps 0 and 2 (lag 2): the same bits."""
    one, two = (trained(organism, tmp_path / str(lag), lag=lag, steps=3)[1] for lag in (1, 2))
    assert one.pairs[1] == two.pairs[1] and one.pairs[0] == two.pairs[0]


def test_a_resumed_run_makes_the_labels_it_has_not_and_no_others(organism, tmp_path):
    """From a checkpoint before step 3 at lag 1: step 3 has its labels (version 2), step 4 gets those of version 3."""
    cfg, prepared, learner = start(organism, lag=1, train__checkpoint_every=3)
    kept: list[tuple[int, list[Label]]] = []

    def checkpoint(step: int, learner: Learner, pending: list[Label]) -> None:
        learner.save_checkpoint(str(tmp_path / "checkpoint")).result()
        kept.append((step, pending))

    conductor = SimpleNamespace(report=lambda row: None, checkpoint=checkpoint)
    supply = InProcess(cfg, prepared, tmp_path / "labels")
    run(cfg, learner, supply, conductor, m0_pairs(prepared.train), prepared.train)
    supply.finish()
    table, weights = list(read_labels(str(tmp_path / "labels"))), learner.weights()
    ((step, pending),) = kept
    _, _, again = start(organism, lag=1, train__checkpoint_every=3)
    again.load_checkpoint(str(tmp_path / "checkpoint"))
    resumed = InProcess(cfg, prepared, tmp_path / "labels")
    restored = resumed.loop.run_until_complete(resumed.relabeler.restore(step, pending))
    position = {"start": step, "restored": frozenset(restored)}
    run(cfg, again, resumed, conductor, m0_pairs(prepared.train), prepared.train, **position)
    resumed.finish()
    assert (step, restored, sorted(resumed.pairs)) == (3, [3], [4, 5])
    assert list(read_labels(str(tmp_path / "labels"))) == table
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.weights().items())


def test_unshard_undoes_the_dealing():
    """Five pairs on two ranks: 0 2 4 and 1 3; ranks may come in any order, and one may have none."""
    assert unshard({1: list("bd"), 0: list("ace")}) == list("abcde")
    assert unshard({0: ["a"], 1: []}) == ["a"]
    with pytest.raises(ValueError, match="extended slice"):
        unshard({0: list("abc"), 1: list("d")})
