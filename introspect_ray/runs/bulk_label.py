"""`introspect-ray label`: all cases of a task, training and held-out, labelled in bulk by one policy.

output_dir gets the parts (pairs/rows-*.parquet, see bulk_parts.py), provenance.json and, at the end, labels.json. The
whole set also goes into the cache of label sets under the name by which runs look for it (labels.store.label_set_key):
a run with the same cache_dir, policy, task and engine then starts no labelling of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import yaml
from tqdm import tqdm

from introspect_ray.cases.table_file import from_bytes
from introspect_ray.cli import Arguments
from introspect_ray.config import RunConfig, load_config, override
from introspect_ray.errors import UserError
from introspect_ray.judges import JudgeReport, check_unjudged
from introspect_ray.labels.label_sets import save_pairs
from introspect_ray.labels.pair_table import BATCH_ROWS, PAIR_SCHEMA, PairTable
from introspect_ray.labels.reports import save_report
from introspect_ray.labels.store import read_tables
from introspect_ray.runs.bulk_parts import FOLDER, Part, differing, missing_parts, parts_of, provenance, report_of
from introspect_ray.runs.jobs import Checked, claimed
from introspect_ray.runs.judging import named_judging, start_judging
from introspect_ray.runs.placement import resources
from introspect_ray.runs.preflight import Prepared, prepare
from introspect_ray.runs.results import warned
from introspect_ray.storage import Store, open_store
from introspect_ray.storage.claim import check_free
from introspect_ray.storage.digests import in_parallel
from introspect_ray.storage.output_folder import check_output

if TYPE_CHECKING:
    import pyarrow as pa

PROVENANCE, DONE = "provenance.json", "labels.json"
# Keys and sections of training, of which `label` reads one key. A --config file may hold them: it may be that of a run.
_TRAINING = ("steps", "batch_size", "lag", "kl_weight", "learning_rate", "loss_normalisation", "reference_policy",
             "supervision", "auxiliary", "train")  # fmt: skip
_READ = ("train.max_failures",)
_QUIET_S = 15.0  # between two lines of the bar where the output is not a terminal


@dataclass(frozen=True)
class LabelSet:
    """A label set to be made: its checked inputs, its parts, and which of them are missing."""

    cfg: RunConfig
    checked: Checked
    provenance: dict[str, Any]
    parts: Sequence[Part]
    missing: Sequence[Part]

    @property
    def prepared(self) -> Prepared:
        return self.checked.prepared

    @property
    def cases(self) -> int:
        return sum(part.cases for part in self.parts)


def label_job(args: Arguments) -> None:
    """Label what is missing. Raises UserError before anything heavy starts and before anything is written."""
    _refuse_training(args.overrides)
    given = load_config(args.config, args.overrides, {"output_dir": "runs/label"})
    todo = check_labelling(given, explain=args.flags["explain"], resume=args.resume, overwrite=args.overwrite)
    if args.dry_run:
        print(plan_of(todo))
        return
    store = open_store(todo.cfg.output_dir)
    if args.resume and store.exists(DONE) and not todo.missing:
        print(f"already finished: {store.join(DONE)}")
        return
    done = run_labelling(todo)
    print(f"labels   {store.join(FOLDER)}\nsummary  {store.join(DONE)}\ncache    {done['cached']}")


def check_labelling(given: RunConfig, *, explain: bool, resume: bool, overwrite: bool) -> LabelSet:
    """All that can be refused before engines start. Writes nothing but caches. Raises UserError."""
    _refuse_others(given)
    cfg = labelling_config(given)
    check_output(cfg.output_dir, resume=resume, overwrite=overwrite)
    check_free(cfg.output_dir)
    prepared = prepare(cfg, training=False)
    judging, tables = named_judging(cfg, prepared), (prepared.train, prepared.test)
    longest = prepared.max_explanation_tokens if explain else None
    source = provenance(cfg, prepared.policy_id, tables, judging.identity if judging else "", longest)
    store, parts = open_store(cfg.output_dir), parts_of(sum(map(len, tables)), cfg.rollout.bulk_group)
    if resume and store.exists(PROVENANCE):
        _check_same(store, source)
    present = whole_parts(store) if resume else []
    return LabelSet(cfg, Checked(prepared, None, resume, overwrite), source, parts, missing_parts(parts, present))


def labelling_config(given: RunConfig) -> RunConfig:
    """`given` for a job that trains nothing: the engines, and one CPU for the pipeline's own tasks."""
    engine = given.rollout.served_by
    nothing_trained = {
        "reference_policy": None,
        "supervision.rule": "fixed",
        "train.reference": "cache",
        "train.num_workers": 1,
        "train.num_cpus": 1,
        "train.use_gpu": False,
        "train.attention": "auto",
        "train.offload": False,
        "rollout.engine": engine,
        "rollout.serving_engine": "vllm",
        "rollout.weight_transfer": "object_store",
    }
    return override(given, nothing_trained)


def run_labelling(todo: LabelSet) -> dict[str, Any]:
    """Label the missing parts, and put the whole set into the cache; returns labels.json."""
    cfg, began = todo.cfg, time.perf_counter()
    with claimed(cfg, todo.checked, "label", "label_run.json") as store:
        store.write_json(PROVENANCE, todo.provenance)
        if todo.checked.resume:
            print(f"resume   {len(todo.missing)} of {len(todo.parts)} parts are missing", flush=True)
        seconds = _label(todo) if todo.missing else 0.0
        done = finish(todo, store)
        now = sum(part.cases for part in todo.missing)
        rate: dict[str, float | None] = {"cases_labelled": now, "seconds": round(seconds, 3)}
        rate["cases_per_second"] = round(now / seconds, 1) if seconds else None
        done |= {"this_call": {**rate, "seconds_in_all": round(time.perf_counter() - began, 3)}}
        store.write_json(DONE, done)
    return done


def _label(todo: LabelSet) -> float:
    """Run the pipeline over the missing parts, with a progress line; returns the seconds from its start to its end."""
    import ray

    from introspect_ray.actors.rollout import EngineSpec
    from introspect_ray.runs.bulk_pipeline import Labelling, label_parts

    cfg, prepared, source = todo.cfg, todo.prepared, todo.provenance
    judged: JudgeReport | None = None
    judging = start_judging(cfg, prepared)
    spec = EngineSpec(cfg.policy, prepared.max_model_len, cfg.method, cfg.lora_rank, cfg.seed, judging)
    labelling = Labelling(cfg.rollout, spec, prepared.tokenizer, source, source["max_explanation_tokens"])
    tables = [ray.put(prepared.train), ray.put(prepared.test)]
    began, every = time.perf_counter(), 1.0 if sys.stderr.isatty() else _QUIET_S
    done = todo.cases - sum(part.cases for part in todo.missing)
    bar = tqdm(total=todo.cases, initial=done, desc="label", unit="case", mininterval=every, maxinterval=2 * every)
    with bar:
        for cases, report in label_parts(cfg, labelling, tables, todo.missing):
            bar.update(cases)
            if report:
                judged = judged + report if judged else report
                check_unjudged(judged, cfg.judge.max_unjudged)
    return time.perf_counter() - began


def finish(todo: LabelSet, store: Store) -> dict[str, Any]:
    """Put the finished set into the cache; returns labels.json without its times. Raises UserError for a damaged part,
    AlarmError where the judge gave no verdict on too many responses."""
    from introspect_ray.runs.setup import label_set, reading_of

    cfg, prepared = todo.cfg, todo.prepared
    judging, own = named_judging(cfg, prepared), prepared.tokens_of(cfg.policy)
    pairs, judged = read_set(store)
    if len(pairs) != todo.cases:
        raise UserError(
            f"{store.join(FOLDER)} has {len(pairs)} pairs for {todo.cases} cases: a file there is not this program's; "
            "give another output_dir, or --overwrite"
        )
    if judged:
        check_unjudged(judged, cfg.judge.max_unjudged)
    key, cache = label_set(cfg, own, prepared.policy_id, judging), prepared.cache_uri
    if judged:
        save_report(cache, key, judged)  # first: a set without a report is of closed labels
    save_pairs(cache, key, pairs)
    reading = reading_of(cfg, prepared, pairs.by_id, judging)
    reading.save(store)
    return {
        "provenance": todo.provenance,
        "parts": len(todo.parts),
        "changed": sum(pair.cued != pair.ablated for pair in pairs),
        "off_format": sum(pair.cued_off_format + pair.ablated_off_format for pair in pairs),
        "calibration": reading.summary,
        "judges": judged.summary() if judged else None,
        "cached": open_store(cache).join(f"pairs/{key}.parquet"),
    }


def read_set(store: Store) -> tuple[PairTable, JudgeReport | None]:
    """All pairs of a finished set, raw, in the order of the cases, and what the judges made of them. store: of
    output_dir. Raises UserError for a damaged part."""
    reports: list[JudgeReport] = []

    def batches() -> Iterator[pa.RecordBatch]:
        remedy = "go on with --resume, which makes it again"
        for table in read_tables(store.join(FOLDER), PAIR_SCHEMA.names, remedy):
            if report := report_of(table.schema.metadata):
                reports.append(report)
            yield from table.replace_schema_metadata(PAIR_SCHEMA.metadata).to_batches(BATCH_ROWS)

    pairs = PairTable.from_batches(batches())
    return pairs, reduce(add, reports) if reports else None


def whole_parts(store: Store) -> list[str]:
    """The names of the parts that are as they were written; a warning names each other one, which is made again."""

    def problem(name: str) -> str | None:
        try:
            from_bytes(store.read_bytes(name))
        except ValueError as error:
            return f"{store.join(name)} is damaged ({error}): it is made again"
        return None

    names = [name for name in store.list(FOLDER) if name.endswith(".parquet")]
    problems = in_parallel(problem, names)
    warned([line for line in problems if line])
    return [name for name, line in zip(names, problems, strict=True) if line is None]


def plan_of(todo: LabelSet) -> str:
    """--dry-run: the provenance that the set will have, its parts and the resources."""
    cfg, need = todo.cfg, resources(todo.cfg)
    source = yaml.safe_dump(todo.provenance, sort_keys=False, allow_unicode=True).rstrip()
    return (
        f"{source}\n---\n"
        f"parts: {len(todo.parts)} of up to {todo.parts[0].cases} cases, {len(todo.missing)} to be labelled\n"
        f"longest sequence: {todo.prepared.max_model_len} tokens\n"
        f"budget: {need['CPU']:g} logical CPUs, {need['GPU']:g} GPUs\n"
        f"placement: 1 to {cfg.rollout.num_actors} {cfg.rollout.served_by} engine(s) x {cfg.rollout.num_cpus:g} CPU + "
        f"{cfg.rollout.num_gpus:g} GPU, as many as the parts keep busy\n"
        f"output: {cfg.output_dir}, and the cache {todo.prepared.cache_uri}"
    )


def _refuse_training(overrides: Mapping[str, Any]) -> None:
    """Refuse keys of training on the command line, which have no effect here."""
    for key, value in overrides.items():
        if key.partition(".")[0] in _TRAINING and key not in _READ:
            raise UserError(f"{key}={value} has no effect on `label`, which trains nothing: leave it out")


def _refuse_others(given: RunConfig) -> None:
    """Refuse keys that would say which policy answers, or how, and have no effect here."""
    if given.eval.policy or given.eval.against:
        raise UserError(
            f"eval.policy={given.eval.policy} and eval.against={list(given.eval.against)} have no effect on `label`: "
            "name the policy that labels as policy=..., one call per policy"
        )
    if given.eval.decode != "free":
        raise UserError(
            f"eval.decode={given.eval.decode} has no effect on `label`, which generates freely: leave it out"
        )
    if given.task.shots:
        raise UserError(
            f"task.shots={given.task.shots} has no effect on `label`, which asks without examples: leave it out"
        )


def _check_same(store: Store, source: dict[str, Any]) -> None:
    """Refuse to complete a label set by another policy, other cases or another engine."""
    before = store.read_json(PROVENANCE)
    if name := differing(before, source):
        raise UserError(
            f"cannot resume {store.join()}: {name} was {before.get(name)!r} and is now {source[name]!r}; give the same "
            "policy, task, engine and --explain as before, or another output_dir"
        )
