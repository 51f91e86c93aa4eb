"""Trains a recorded run again from its label table: no engine, no relabeler, the same weights bit for bit.

The trainer takes nothing but labels from the rest of the system, so the run's config, its label table and M0 decide the
weights. A replay is one process; it uses the cached reference where the run kept it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from introspect_ray.cli import Arguments
from introspect_ray.config import RunConfig, TrackingConfig, override
from introspect_ray.config.compatibility import workers_text
from introspect_ray.engines.determinism import use_deterministic_algorithms
from introspect_ray.errors import UserError
from introspect_ray.labels.audit import load_run
from introspect_ray.labels.label_sets import label_set_key, load_pairs
from introspect_ray.labels.reading import Reading, load_reading
from introspect_ray.labels.store import read_labels
from introspect_ray.records import AuxiliaryText, BehaviorPair, Label
from introspect_ray.runs.judging import judging_key
from introspect_ray.runs.policy_cases import one_token
from introspect_ray.runs.preflight import Prepared, prepare
from introspect_ray.schedule import auxiliary_plan, step_plan
from introspect_ray.storage import Store, open_store
from introspect_ray.storage.claim import held
from introspect_ray.storage.output_folder import check_output, prepare_output
from introspect_ray.storage.tracker import Tracker
from introspect_ray.storage.tracking import make_tracker
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

_FROM_M0 = (
    "explanation_orig",
    "behavior_em",
    "behavior_cued",
    "behavior_ablated",
)  # metrics that M0's pairs are needed for


@dataclass(frozen=True)
class Difference:
    """A replayed policy compared with the recorded one. largest: maximal absolute difference of two weights."""

    tensors: int
    unequal: int  # tensors that differ in at least one bit
    largest: float

    def __str__(self) -> str:
        if not self.unequal:
            return f"identical: {self.tensors} tensors, bit for bit"
        return f"{self.unequal} of {self.tensors} tensors differ, the largest difference is {self.largest:.3g}"


def replay_config(source: Store, output_dir: str) -> RunConfig:
    """The recorded config, writing to `output_dir`. Raises UserError for a run of several workers."""
    cfg = load_run(source)
    if cfg.train.max_workers > 1:
        raise UserError(
            f"{source.join()} was trained by train.num_workers={workers_text(cfg)}: a replay is one process, whose "
            "sums over the batch round differently, so it could not arrive at the same bits; replay a run of one worker"
        )
    caches = [cfg.cache_dir, source.join("cache"), f"{output_dir.rstrip('/')}/cache"]
    kept = next((uri for uri in caches[:2] if uri and open_store(uri).list("references")), caches[2])
    # No engine is started: none needs room, GPUs, or what goes with GPUs.
    none = {"num_actors": 1, "num_cpus": 0, "num_gpus": 0, "tensor_parallel_size": 1, "weight_transfer": "object_store"}
    engines = {f"rollout.{key}": value for key, value in none.items()}
    groups = {"rollout.group_size": cfg.rollout.bulk_group}  # of the label set's name; its default follows num_gpus
    return override(cfg, {"output_dir": output_dir, "cache_dir": kept, "ray_address": None, **engines, **groups})


def recorded_steps(uri: str, cfg: RunConfig, case_ids: Sequence[str]) -> Iterator[list[Label]]:
    """The labels of steps 0, 1, ..., each in plan order, streamed from the label table at `uri`.

    Raises UserError for a step that lacks labels, or whose cases are not those of its plan.
    """
    waiting: dict[int, list[Label]] = {}
    stream = read_labels(uri)
    for step in range(cfg.steps):
        while len(waiting.get(step, ())) < cfg.batch_size:
            label = next(stream, None)
            if label is None:
                have = len(waiting.get(step, ()))
                raise UserError(
                    f"{uri} holds {have} of {cfg.batch_size} labels of step {step} (of {cfg.steps}): only "
                    "a finished run can be replayed; jobs/audit.py lists what is missing"
                )
            waiting.setdefault(label.provenance.step, []).append(label)
        labels = waiting.pop(step)
        planned = [case_ids[i] for i in step_plan(cfg.seed, step, len(case_ids), cfg.batch_size)]
        wrong = [(x.case_id, want) for x, want in zip(labels, planned, strict=True) if x.case_id != want]
        if wrong:
            raise UserError(
                f"step {step}: the label table has case {wrong[0][0]!r} where the plan has {wrong[0][1]!r}: "
                "the task's files changed, or this is a sweep's trial, whose task.train_cases the first seed chose"
            )
        yield labels


def train_again(
    cfg: RunConfig,
    prepared: Prepared,
    m0: Mapping[str, BehaviorPair],
    source: Store,
    tracker: Tracker,
    folder: str,
) -> None:
    """Train a new learner on every recorded step of `source` and export its policy to the local `folder`.

    m0: see `m0_pairs`. Raises UserError if it is not known and the KL needs it.
    """
    if cfg.deterministic:
        use_deterministic_algorithms()
    torch.set_num_threads(cfg.train.threads)  # the number of threads decides how sums are split, hence rounded
    reference, calibration = None, load_reading(source).calibration
    responses = _responses(m0, prepared, source)  # the KL of a live reference follows them too
    if cfg.train.reference == "cache":
        reference = build_reference(
            prepared.reference_path,
            prepared.train,
            responses,
            prepared.cache_uri,
            cfg.train.dtype,
            cfg.train.token_budget,
            cfg.train.attention,
        )
    skipped = _FROM_M0 if isinstance(m0, _Unknown) else ()
    with _process_group(cfg):
        train = prepared.train
        learner = Learner(
            cfg, prepared.policy_path, reference, train.by_id, longest=train.longest_tree_path, calibration=calibration
        )
        for step, labels in enumerate(recorded_steps(source.join("labels"), cfg, prepared.train.case_ids)):
            metrics = learner.step(labels, m0, _auxiliary(cfg, prepared, step))
            tracker.log_metrics({name: value for name, value in metrics.items() if name not in skipped}, step)
        learner.export(folder)


def m0_pairs(recorded: RunConfig, prepared: Prepared, reading: Reading) -> Mapping[str, BehaviorPair]:
    """M0's pairs, which only metrics and responses of several tokens need; `_Unknown` if their set is not cached.

    recorded: the config of the run that made them: its engines and judges are part of the set's address. reading: how
    that run read behaviours.
    """
    judge = judging_key(recorded, prepared)
    own = prepared.tokens_of(recorded.policy)
    key = label_set_key(prepared.reference_id, chain(prepared.train, prepared.test), recorded.rollout, judge)
    pairs = load_pairs(prepared.cache_uri, key + "-deterministic" * recorded.deterministic)
    return _Unknown(own.labels) if pairs is None else pairs.read_by(reading, own.labels).by_id


def _responses(m0: Mapping[str, BehaviorPair], prepared: Prepared, source: Store) -> Mapping[str, BehaviorPair] | None:
    """M0's pairs for the KL; None where every response is one token, so that it does not matter which."""
    if one_token(prepared.train):
        return None
    if isinstance(m0, _Unknown):
        raise UserError(
            f"{source.join()} was trained to keep M0's responses of several tokens, and the cache {prepared.cache_uri} "
            "has no label set of M0 with them: give the run's cache back (cache_dir)"
        )
    return m0


def _auxiliary(cfg: RunConfig, prepared: Prepared, step: int) -> Sequence[AuxiliaryText]:
    """The auxiliary texts of a step; they follow from the seed."""
    table = prepared.auxiliary
    if table is None:
        return ()
    return table.rows(auxiliary_plan(cfg.seed, step, len(table), cfg.auxiliary.batch_size))


class _Unknown(dict[str, BehaviorPair]):
    """Stands for pairs that are not known: each case's first label, whose response is as long as any of one token."""

    def __init__(self, labels: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self._labels = labels

    def __missing__(self, case_id: str) -> BehaviorPair:
        label = self._labels[case_id][0]
        return BehaviorPair(case_id, label, label, (), (), False, False, 0)


@contextmanager
def _process_group(cfg: RunConfig) -> Iterator[None]:
    """On a GPU a process group of one, as Ray Train makes it: the learner shards and casts by FSDP2 even alone."""
    if not cfg.train.use_gpu:
        yield
        return
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def compare(recorded: Path, replayed: Path) -> Difference:
    """All *.safetensors of two policy folders, bit by bit. Raises UserError if names or shapes are not the same."""
    old, new = _tensors(recorded), _tensors(replayed)
    shapes = ({name: tuple(t.shape) for name, t in side.items()} for side in (old, new))
    if next(shapes) != next(shapes):
        raise UserError(f"{recorded} and {replayed} cannot be compared: their tensors differ in names or shapes")
    unequal = [name for name in old if not torch.equal(_bits(old[name]), _bits(new[name]))]
    gaps = [(old[name].double() - new[name].double()).abs().max().item() for name in unequal]
    return Difference(len(old), len(unequal), math.nan if any(map(math.isnan, gaps)) else max(gaps, default=0.0))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def replay_job(args: Arguments) -> bool:
    """Replay `source` into output_dir; returns whether the policy equals source/policy. Raises UserError."""
    given = dict(args.overrides)
    if "source" not in given or args.config or args.resume or set(given) - {"source", "output_dir"}:
        raise UserError("a replay takes the run's folder and one of its own: source=runs/x output_dir=runs/x-replay")
    source = open_store(str(given["source"]))
    out = open_store(str(given.get("output_dir", f"{str(given['source']).rstrip('/')}-replay"))).join()
    cfg = replay_config(source, out)
    prepared = prepare(cfg, engines=False)
    if args.dry_run:
        print(f"replay of {cfg.steps} steps of {cfg.batch_size} labels from {source.join('labels')} to {out}")
        return True
    check_output(out, overwrite=args.overwrite)
    with held(out, "replay"), tempfile.TemporaryDirectory() as scratch:
        store = prepare_output(out, overwrite=args.overwrite)
        store.write_json("run.json", cfg.model_dump(mode="json"))
        new, old = Path(scratch, "new"), Path(scratch, "old")
        with make_tracker(TrackingConfig(backend="none"), out, "replay") as tracker:
            m0 = m0_pairs(load_run(source), prepared, load_reading(source))
            train_again(cfg, prepared, m0, source, tracker, str(new))
        store.upload_dir(new, "policy")
        print(f"policy   {store.join('policy')}")
        if not source.list("policy"):
            print(f"nothing to compare with: {source.join('policy')} is not there")
            return True
        source.download_dir("policy", old)
        difference = compare(old, new)
    print(f"compared with {source.join('policy')}: {difference}")
    return not difference.unequal
