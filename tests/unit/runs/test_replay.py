"""A recorded run trained again from its labels alone: the same bits, and other bits where a label differs."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from introspect_ray.cli import parse
from introspect_ray.config import RunConfig, load_config
from introspect_ray.engines import make_engine
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.errors import UserError
from introspect_ray.labels.audit import audit, load_run
from introspect_ray.labels.label_sets import label_set_key, load_pairs, save_pairs
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.labels.rules import online_label
from introspect_ray.labels.store import LabelWriter, read_labels
from introspect_ray.loop import run
from introspect_ray.records import Label, StepLabels
from introspect_ray.runs.preflight import Prepared, prepare
from introspect_ray.runs.replay import compare, replay_config, replay_job
from introspect_ray.schedule import plan_ids
from introspect_ray.storage import open_store
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

STEPS, BATCH, NU = 3, 8, 0.7


class InProcess:
    """The loop's Supply without actors: engine, rule and writer called in turn."""

    def __init__(self, cfg: RunConfig, prepared: Prepared, engine: object, writer: LabelWriter) -> None:
        self.cfg, self.engine, self.writer = cfg, engine, writer
        self.cases = {case.case_id: case for case in prepared.train}
        self.steps: dict[int, StepLabels] = {}

    def publish(self, learner, version) -> None:
        self.engine.load_weights(WeightUpdate(version, "full", learner.weights(), ()))

    def request(self, step: int, version: int) -> None:
        pairs = self.engine.label_pairs([self.cases[i] for i in plan_ids(self.cfg, list(self.cases), step)])
        rule = {"agreement": NU, "wrong_label": "content", "seed": self.cfg.seed, "step": step}
        labels = [online_label(p, self.cases[p.case_id].labels, source_model=self.cfg.policy, **rule) for p in pairs]
        self.writer.append(labels)
        self.steps[step] = StepLabels(labels, pairs, None, None, None, 0.0, 0.0, 0.0)

    def fetch(self, step: int) -> StepLabels:
        return self.steps.pop(step)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three online steps on the organism, as a training job leaves it."""
    out = tmp_path_factory.mktemp("run")
    flat = {"output_dir": str(out), "steps": STEPS, "batch_size": BATCH, "task.train_cases": 24, "task.test_cases": 8}
    online = {"supervision.rule": "online", "supervision.agreement": NU, "rollout.engine": "transformers"}
    cfg = load_config(None, {**flat, **online})
    prepared = prepare(cfg)
    torch.set_num_threads(cfg.train.threads)
    engine = make_engine(cfg.rollout, prepared.policy_path, max_model_len=prepared.max_model_len)
    cases = [*prepared.train, *prepared.test]
    m0 = engine.label_pairs(cases)
    save_pairs(prepared.cache_uri, label_set_key(prepared.policy_id, cases, cfg.rollout), PairTable.build(m0))
    reference = build_reference(prepared.policy_path, prepared.train, None, prepared.cache_uri)
    learner = Learner(cfg, prepared.policy_path, reference, {case.case_id: case for case in prepared.train})
    writer, rows = LabelWriter(str(out / "labels"), flush_rows=10), []  # steps 0 and 1, then step 2
    supply = InProcess(cfg, prepared, engine, writer)
    pairs = {pair.case_id: pair for pair in m0}
    run(cfg, learner, supply, SimpleNamespace(report=rows.append, node_is_going=lambda: False), pairs, prepared.train)
    writer.close()
    learner.export(str(out / "policy"))
    store = open_store(out)
    store.write_json("run.json", cfg.model_dump(mode="json"))
    store.write_json("summary.json", {})
    store.write_json("losses.json", [[row.loss, row.explanation_orig, row.behavior_em] for row in rows])
    return out


def replayed(source: Path, out: Path) -> bool:
    return replay_job(parse("", [f"source={source}", f"output_dir={out}"]))


def rewrite(source: Path, copy: Path, labels: Sequence[Label]) -> Path:
    """The recorded run with another label table."""
    shutil.copytree(source, copy)
    shutil.rmtree(copy / "labels")
    writer = LabelWriter(str(copy / "labels"))
    writer.append(labels)
    writer.close()
    return copy


def test_the_same_bits_and_the_same_metrics(recorded, tmp_path, capsys):
    assert audit(open_store(recorded)).clean
    assert len(list((recorded / "labels").iterdir())) == 2
    assert replayed(recorded, tmp_path / "again")
    assert "identical: " in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    shown = [[row["loss"], row["explanation_orig"], row["behavior_em"]] for row in rows]
    assert shown == json.loads((recorded / "losses.json").read_text())
    # and the policy is a trained one, not M0 twice
    start = prepare(load_config(None, {"output_dir": str(tmp_path / "x")})).policy_path
    assert compare(Path(start), tmp_path / "again" / "policy").largest > 1e-3


def test_one_other_label_gives_other_weights(recorded, tmp_path, capsys):
    labels = list(read_labels(str(recorded / "labels")))
    last = labels[-1]
    labels[-1] = replace(last, explanation=last.explanation._replace(changed=not last.explanation.changed))
    assert not replayed(rewrite(recorded, tmp_path / "other", labels), tmp_path / "again")
    assert "tensors differ, the largest difference is " in capsys.readouterr().out


def test_without_the_caches_the_bits_are_the_same_and_m0_metrics_are_left_out(recorded, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(recorded, moved, ignore=shutil.ignore_patterns("cache"))
    assert replayed(moved, tmp_path / "again")
    row = json.loads((tmp_path / "again" / "metrics.jsonl").read_text().splitlines()[0])
    assert "loss" in row and "behavior_em" not in row and "explanation_orig" not in row


def test_the_engines_of_the_recorded_run_need_not_be_here(recorded, tmp_path, monkeypatch):
    """It had vLLM, which is not installed, on GPUs, a second policy that is gone, and no such room. M0's pairs are
    those of its engines: two GPUs each, hence another label set than a single one's."""
    copy = tmp_path / "gpus"
    shutil.copytree(recorded, copy)
    store = open_store(copy)
    config = store.read_json("run.json")
    config["rollout"] |= {"engine": "vllm", "num_actors": 9, "num_cpus": 64, "num_gpus": 2}
    config["rollout"]["tensor_parallel_size"] = 2
    config["supervision"] |= {"rule": "mixed", "second_policy": "/nowhere"}
    config["cache_dir"] = str(copy / "cache")
    store.write_json("run.json", config)
    cfg = load_config(None, {"output_dir": str(copy), "task.train_cases": 24, "task.test_cases": 8})
    prepared = prepare(cfg)
    cases = [*prepared.train, *prepared.test]
    rollout = RunConfig.model_validate(config).rollout
    pairs = load_pairs(
        prepared.cache_uri, label_set_key(prepared.policy_id, cases, load_run(open_store(recorded)).rollout)
    )
    save_pairs(prepared.cache_uri, label_set_key(prepared.policy_id, cases, rollout), pairs)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: (name != "vllm" and find(name, *rest)) or None)
    assert replayed(copy, tmp_path / "again")
    rows = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    shown = [[row["loss"], row["explanation_orig"], row["behavior_em"]] for row in rows]
    assert shown == json.loads((recorded / "losses.json").read_text())


@pytest.mark.parametrize(("transfer", "gpus"), [("nccl", 1), ("ipc", 0.5)])
def test_a_replay_asks_for_no_gpus_of_engines(recorded, tmp_path, transfer, gpus):
    copy = open_store(tmp_path)
    config = open_store(recorded).read_json("run.json")
    config["rollout"] |= {"engine": "vllm", "num_gpus": gpus, "weight_transfer": transfer}
    config["train"]["use_gpu"] = True
    copy.write_json("run.json", config)
    cfg = replay_config(copy, str(tmp_path / "again"))
    assert (cfg.rollout.num_gpus, cfg.rollout.weight_transfer) == (0, "object_store")


def test_what_cannot_be_replayed_is_refused(recorded, tmp_path):
    labels = list(read_labels(str(recorded / "labels")))
    with pytest.raises(UserError, match=r"holds 7 of 8 labels of step 2 \(of 3\)"):
        replayed(rewrite(recorded, tmp_path / "short", labels[:-1]), tmp_path / "a")
    swapped = [labels[1], labels[0], *labels[2:]]
    with pytest.raises(UserError, match=f"has case {labels[1].case_id!r} where the plan has {labels[0].case_id!r}"):
        replayed(rewrite(recorded, tmp_path / "swapped", swapped), tmp_path / "b")
    two = rewrite(recorded, tmp_path / "two", labels)
    config = json.loads((two / "run.json").read_text())
    config["train"]["num_workers"] = 2
    (two / "run.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"train\.num_workers=2: a replay is one process"):
        replayed(two, tmp_path / "c")
    with pytest.raises(UserError, match="source=runs/x"):
        replay_job(parse("", [f"output_dir={tmp_path}"]))
    with pytest.raises(UserError, match=r"holds no run\.json"):
        replayed(tmp_path / "nowhere", tmp_path / "d")
    with pytest.raises(UserError, match="is not empty"):
        replayed(recorded, recorded)


def test_compare_by_hand(tmp_path):
    """One of two tensors differs, by 0.25 at most; -0.0 and 0.0 are other bits, at distance 0."""
    for name, tensors in {
        "a": {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(0.0)},
        "b": {"w": torch.tensor([1.25, 2.0]), "b": torch.tensor(0.0)},
        "c": {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(-0.0)},
        "d": {"w": torch.tensor([1.0, 2.0])},
    }.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (found.tensors, found.unequal, found.largest) == (2, 1, 0.25)
    assert compare(tmp_path / "a", tmp_path / "a").unequal == 0
    zeros = compare(tmp_path / "a", tmp_path / "c")
    assert (zeros.unequal, zeros.largest) == (1, 0.0)
    with pytest.raises(UserError, match="cannot be compared"):
        compare(tmp_path / "a", tmp_path / "d")
