"""rollout.engine=learner: the loop labels each step with the weights of exactly the version that the lag asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from learner_helpers import assert_same_pairs, make_pairs, organism_cases, pair_logprobs, weight_update

from introspect_ray.actors.relabeler import Relabeler
from introspect_ray.config import RunConfig, load_config
from introspect_ray.engines import make_engine
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.labels.rules import Sources
from introspect_ray.labels.store import read_labels
from introspect_ray.loop import run
from introspect_ray.policy import BUNDLED
from introspect_ray.records import BehaviorPair, Label, StepLabels
from introspect_ray.schedule import label_version, plan_ids
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

STEPS, BATCH = 6, 8


POLICY = str(BUNDLED["organism"])
CASES = organism_cases(20)  # so that batches straddle epochs
M0 = make_pairs(CASES)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_reference(POLICY, CASES, None, str(tmp_path_factory.mktemp("reference")))


class InProcess:
    """The loop's Supply, with the real relabeler in this process. The loop may neither publish nor request."""

    def __init__(self, cfg: RunConfig, folder: Path) -> None:
        sources = Sources({case.case_id: case.labels for case in CASES}, cfg.policy, {})
        self.relabeler = Relabeler(cfg, sources, str(folder))
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.relabeler.enter(1))
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


def start(reference: str, **flat: object) -> tuple[RunConfig, Learner]:
    flat = {key.replace("__", "."): value for key, value in flat.items()}
    flat |= {"batch_size": BATCH, "supervision.rule": "online"}
    flat |= {"rollout.engine": "learner", "rollout.serving_engine": "transformers"}
    cfg = load_config(None, {"steps": STEPS, **flat})
    return cfg, Learner(cfg, POLICY, reference, {case.case_id: case for case in CASES})


def trained(reference: str, folder: Path, **flat: object) -> tuple[RunConfig, InProcess, list[WeightUpdate]]:
    """A run by the real loop, learner and relabeler: its config, its supply, and the weights of every version."""
    cfg, learner = start(reference, **flat)
    supply, versions = InProcess(cfg, folder), [weight_update(learner, 0, CASES[0])]

    def report(row: object) -> None:
        versions.append(weight_update(learner, len(versions), CASES[0]))

    conductor = SimpleNamespace(report=report, node_is_going=lambda: False)
    seconds = run(cfg, learner, supply, conductor, M0, CASES)
    supply.finish()
    assert seconds["label"] > 0 and seconds["sync"] == 0
    return cfg, supply, versions


@pytest.mark.parametrize(("lag", "sync_every"), [(0, 1), (1, 1), (0, 2), (2, 2)])
def test_every_step_is_labelled_by_exactly_its_version(reference, tmp_path, lag, sync_every):
    """The pairs of each step are those of an engine on the weights of `label_version`, and of no other version."""
    cfg, supply, versions = trained(reference, tmp_path, lag=lag, rollout__sync_every=sync_every)
    ids = [case.case_id for case in CASES]
    engine = make_engine(cfg.rollout, POLICY, max_model_len=256)
    served: list[dict[str, BehaviorPair]] = []
    for version in versions:
        engine.load_weights(version)
        served.append({pair.case_id: pair for pair in engine.label_pairs(CASES)})
    for step in range(STEPS):
        plan, right = plan_ids(cfg, ids, step), label_version(step, lag, sync_every)
        assert_same_pairs(supply.pairs[step], [served[right][i] for i in plan])
        for wrong in set(range(STEPS + 1)) - {right}:
            other = [value for i in plan for value in pair_logprobs(served[wrong][i])]
            ours = [value for pair in supply.pairs[step] for value in pair_logprobs(pair)]
            assert ours != pytest.approx(other, abs=1e-3)
    labels = list(read_labels(str(tmp_path)))
    assert [label.case_id for label in labels] == [i for step in range(STEPS) for i in plan_ids(cfg, ids, step)]
    for label in labels:
        made = label.provenance
        right = label_version(made.step, lag, sync_every)
        assert (made.rule, made.cued_version, made.ablated_version) == ("online", right, right)
        assert label.explanation == label.current == served[right][label.case_id].explanation


def test_which_cases_share_a_forward_does_not_depend_on_the_lag(reference, tmp_path):
    """Step 1 is labelled on version 0 together with step 0 (lag 1), or with steps 0 and 2 (lag 2): the same bits."""
    one, two = (trained(reference, tmp_path / str(lag), lag=lag, steps=3)[1] for lag in (1, 2))
    assert one.pairs[1] == two.pairs[1] and one.pairs[0] == two.pairs[0]


def test_a_resumed_run_makes_only_the_labels_that_the_checkpoint_lacks(reference, tmp_path):
    """Checkpoint before step 3 at lag 1: it holds the labels of step 3 (version 2); step 4 gets those of version 3."""
    cfg, learner = start(reference, lag=1, train__checkpoint_every=3)
    saved: list[tuple[int, list[Label]]] = []

    def checkpoint(step: int, learner: Learner, pending: list[Label]) -> None:
        learner.save_checkpoint(str(tmp_path / "checkpoint")).result()
        saved.append((step, pending))

    conductor = SimpleNamespace(report=lambda row: None, checkpoint=checkpoint, node_is_going=lambda: False)
    supply = InProcess(cfg, tmp_path / "labels")
    run(cfg, learner, supply, conductor, M0, CASES)
    supply.finish()
    table, weights = list(read_labels(str(tmp_path / "labels"))), learner.weights()
    ((step, pending),) = saved
    _, again = start(reference, lag=1, train__checkpoint_every=3)
    again.load_checkpoint(str(tmp_path / "checkpoint"))
    resumed = InProcess(cfg, tmp_path / "labels")
    restored = resumed.loop.run_until_complete(resumed.relabeler.restore(step, pending))
    run(cfg, again, resumed, conductor, M0, CASES, start=step, restored=frozenset(restored))
    resumed.finish()
    assert (step, restored, sorted(resumed.pairs)) == (3, [3], [4, 5])
    assert list(read_labels(str(tmp_path / "labels"))) == table
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.weights().items())
