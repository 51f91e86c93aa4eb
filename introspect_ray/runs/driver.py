"""One training run from the driver's side: training, evaluation, summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import ray

from introspect_ray.actors.relabeler import RelabelerActor
from introspect_ray.actors.rollout import Exported, Serving
from introspect_ray.actors.trainer import WorkerSpec
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import reference_policy
from introspect_ray.labels.reading import NAME as READING
from introspect_ray.labels.rules import Sources
from introspect_ray.runs.cluster import on_this_node
from introspect_ray.runs.complete import complete_labels, complete_rows, go_back, require_complete
from introspect_ray.runs.evaluated import behavior_of, trained_cases, write_cases
from introspect_ray.runs.explained import assess
from introspect_ray.runs.identity import cases_digest, run_identity
from introspect_ray.runs.interim import OnScores, interim_of, scorer
from introspect_ray.runs.judging import doubts
from introspect_ray.runs.kept_sets import stored_set
from introspect_ray.runs.progress import StepTracking
from introspect_ray.runs.recovery import train_with_recovery
from introspect_ray.runs.released import evaluation_room, training_room
from introspect_ray.runs.results import run_summary, tolerated, track_results, warned
from introspect_ray.runs.setup import SharedSetup, findings, judged_of, label_set, untrained_scores
from introspect_ray.runs.tracked import datasets, tracked
from introspect_ray.runs.waiting import watched
from introspect_ray.scores.evaluated_cases import TEST, EvaluatedCases
from introspect_ray.scores.evaluation import details, evaluate
from introspect_ray.scores.evaluation_table import TRAINED, UNTRAINED
from introspect_ray.storage import Store, open_store
from introspect_ray.storage.checkpoints import list_names
from introspect_ray.storage.tracker import Dataset, Tracker


def train_once(
    cfg: RunConfig,
    setup: SharedSetup,
    tracker: Tracker,
    *,
    run_name: str,
    on_row: Callable[[dict], None] | None = None,
    on_scores: OnScores | None = None,
) -> dict[str, Any]:
    """Train, evaluate on the held-out cases, write <output_dir>/summary.json and track it; returns the summary.

    on_row: called with the metrics of each step. on_scores: with those of evaluations while it trains (eval.every).
    """
    began = time.perf_counter()
    store = open_store(cfg.output_dir)
    data = _record_before(cfg, setup, store, tracker)
    also = scorer(cfg, setup, run_name, tracker, on_scores)
    steps = StepTracking(setup.status, run_name, tracker, on_row, cfg.train.checkpoint_every or 0, also)
    go_back(store, cfg, run_identity(cfg, setup.prepared, setup.reading), warned)
    with steps.following(), training_room(cfg, setup) as room:
        labelled, done = train_with_recovery(_worker_spec(cfg, room, run_name), lambda: _relabeler(cfg, room))
    trained = time.perf_counter()
    # An engine that dies from here on loads the policy that the workers exported.
    exported = Exported(store.join("policy"), done.probe)
    serving = Serving(cfg.steps, done.served, exported)
    turn = setup.turns.turn() if setup.turns else nullcontext()
    with turn, evaluation_room(cfg, setup) as room, watched(setup.status, run_name, room.pool.engines.waits):
        scoring = time.perf_counter()  # a turn that others had is no part of the evaluation
        evaluated = write_cases(store, TRAINED, _evaluated(cfg, room, serving))
    scores = evaluate(evaluated)
    finished = time.perf_counter()
    seconds = {"train": trained - began, "eval": finished - scoring}
    rows = complete_rows(store, tracker, done.rows)
    complete_labels(store, cfg, _sources(cfg, setup))
    test = evaluated.of(TEST)
    cases = {"train": len(setup.prepared.train), "test": len(test), "questions": len(set(test.questions))}
    totals = {**labelled, **done.seconds}
    judged = [*setup.judged, *judged_of("trained", room.pool)]
    out = run_summary(cfg, cases, scores, (setup.reading, judged), totals, rows, setup.seconds, seconds)
    timing = {part: done.seconds[part] for part in ("learner", "export")}  # these are in the summary's set-up
    timing |= {"ray_train": seconds["train"] - sum(done.seconds.values()), "eval": seconds["eval"]}
    extra = _told(cfg, details(evaluated), [*doubts(judged), *done.notes])
    store.write_json("details.json", {**extra, "timing_s": timing, "memory": done.activations})
    store.write_json("summary.json", out)
    with tolerated("tracking of the results"):  # which are written by now
        track_results(tracker, store, cfg, out, rows, scored_on=data[1])
    require_complete(store, cfg, len(setup.prepared.test))
    return out


def _told(cfg: RunConfig, found: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Details with their findings printed and `notes` among them: nobody sees the output of a sweep's trial."""
    if cfg.alarms.collapse != "off":  # those of M0 were printed before training
        warned([line for line in found["findings"] if line.startswith("trained: ")])
    return {**found, "findings": [*found["findings"], *warned(notes)]}


def _record_before(cfg: RunConfig, setup: SharedSetup, store: Store, tracker: Tracker) -> list[Dataset]:
    """Record what is known before training; returns what the run reads."""
    write_cases(store, UNTRAINED, setup.untrained)
    tracker.log_result({"untrained": _before(setup)}, 0)
    data = _datasets(cfg, setup)
    tracker.log_datasets(data)
    store.write_json("run.json", cfg.model_dump(mode="json"))  # also of each trial, for audit and replay
    if not (store.exists(READING) and list_names(store)):  # a checkpoint keeps its own: recovery refuses another
        setup.reading.save(store)
    return data


def _evaluated(cfg: RunConfig, setup: SharedSetup, serving: Serving) -> EvaluatedCases:
    """The held-out cases with what the trained policy does and says."""
    tokens = setup.prepared.tokens_of(cfg.policy)
    raw, explanations = assess(setup.pool, tokens, serving)
    behavior = behavior_of(setup.reading.pairs(raw, tokens.test.labels), tokens.tokenizer)
    return trained_cases(cfg, setup.untrained, behavior, explanations)


def _before(setup: SharedSetup) -> dict[str, Any]:
    """M0's metrics and the findings of the collapse check."""
    one_sided = {finding.name: finding.value for finding in findings(setup)}
    return {**tracked(untrained_scores(setup)), "collapse": one_sided, "prefix_hit_rate": setup.prefix_hit_rate}


def _datasets(cfg: RunConfig, setup: SharedSetup) -> list[Dataset]:
    """The run's training cases, its held-out cases, and the label set of its reference policy."""
    prepared, reference = setup.prepared, reference_policy(cfg) or cfg.policy
    sides = {"train": prepared.train, "test": prepared.test}
    digests = {side: cases_digest(cases) for side, cases in sides.items()}
    key = label_set(cfg, prepared.tokens_of(reference), prepared.reference_id, setup.pool.judging)
    name = stored_set(cfg, prepared.cache_uri, key) or key
    return datasets(cfg, digests, {side: len(cases) for side, cases in sides.items()}, name, reference)


def _worker_spec(cfg: RunConfig, setup: SharedSetup, run_name: str) -> WorkerSpec:
    return WorkerSpec(
        cfg=cfg,
        run_name=run_name,
        policy=cfg.policy,
        reference_path=setup.reference_path,
        train=setup.train,
        m0=setup.m0,
        pool=setup.pool,
        status=setup.status,
        calibration=setup.reading.calibration,
        identity=run_identity(cfg, setup.prepared, setup.reading),
        auxiliary=setup.auxiliary,
        group=setup.group,
        interim=interim_of(cfg, setup, run_name),
    )


def _sources(cfg: RunConfig, setup: SharedSetup) -> Sources:
    return Sources(
        labels=setup.prepared.train.labels,
        policy=cfg.policy,
        m0=ray.get(setup.m0),
        second_policy=cfg.supervision.second_policy,
        second=setup.second,
        reference=reference_policy(cfg),
        reading=setup.reading,
    )


def _relabeler(cfg: RunConfig, setup: SharedSetup) -> Any:
    labels = f"{cfg.output_dir.rstrip('/')}/labels"
    actor = RelabelerActor.options(scheduling_strategy=on_this_node())
    return actor.remote(cfg, _sources(cfg, setup), labels, setup.pool)
