"""The step loop. Every rank runs it; rank 0 also requests labels and reports metrics. The supply hides Ray.

    step t                  consumes                     produces                unblocked by
    ------------------------------------------------------------------------------------------------
    where the engines label:
    publish (all ranks)     weights of version t         delivery to engines     every rank's gather
    request (rank 0)        step plan, version t         labels of its steps     (never waits)
      engines               prompts, version t           behaviour pairs         delivery of t
    where the learner labels (rollout.engine=learner):
    label   (all ranks)     step plan, version t         behaviour pairs         every rank's forwards
    offer   (all ranks)     a shard of a step's pairs    labels of that step     (never waits)
    either way:
      relabeler             pairs, receipts              E_sup(u), buffered      all pairs of step u
    fetch   (all ranks)     labels of step t             this rank's shard       the relabeler
    update  (all ranks)     shard, cached reference      weights of version t+1  every rank's step

Labels of step t come from version `label_version(t)` exactly: t - lag, rounded down to the last version that was
delivered (`sync_every`). At lag 0 the trainer waits for the engines (paper §4.2). At lag k the labels of the next k
steps are made while it trains. The buffer never holds more than lag + sync_every steps, because a step is requested
only when its version is published. A learner that labels has each version itself before its update, so nothing is
published then; it labels the steps of a version one at a time, so that what is computed together does not depend on the
lag.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from introspect_ray.cases.lookup import records_at
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import learner_labels
from introspect_ray.labels.alarms import check_step, engine_gap, stop_on
from introspect_ray.records import AuxiliaryText, BehaviorPair, StepLabels, StepMetrics, TokenizedCase
from introspect_ray.schedule import label_version, step_plan, steps_due

if TYPE_CHECKING:  # they import torch and Ray
    from introspect_ray.actors.supply import Conductor, Supply
    from introspect_ray.training.learner import Learner

Logprobs = Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]  # by case id: natural label logprobs on x, on x∖C


def no_texts(step: int) -> Sequence[AuxiliaryText]:
    """The auxiliary texts of a run that has none."""
    return ()


def run(
    cfg: RunConfig,
    learner: Learner,
    supply: Supply,
    conductor: Conductor,
    m0: Mapping[str, BehaviorPair],
    train: Sequence[TokenizedCase],
    *,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    restored: frozenset[int] = frozenset(),
    auxiliary: Callable[[int], Sequence[AuxiliaryText]] = no_texts,
) -> dict[str, float]:
    """Train from step `start` to cfg.steps.

    m0: M0's pairs by case id. train: the training cases in plan order. world: how many ranks there are; each takes
    every world-th case of a step, from its own number on. restored: steps whose labels came with the checkpoint.
    auxiliary: this rank's auxiliary texts of a step. Returns this rank's seconds by activity:
    "train", "sync" (with the engines), "label" (by the learner) and "wait" (for labels). Raises AlarmError on rank 0 if
    a step exceeds a bound of cfg.alarms, and after a checkpoint Interrupted if a node of the run is about to go, and
    Halted if the job was asked to end.

    Collectives (weight gather, labelling, update, checkpoint) are reached by every rank in the same order.
    """
    seconds = {"train": 0.0, "sync": 0.0, "label": 0.0, "wait": 0.0}
    ordering = "label" if learner_labels(cfg) else "sync"
    known: dict[int, Logprobs] = {}  # by later step, what rank 0 compares with its engines
    for step in range(start, cfg.steps):
        began = time.perf_counter()
        known |= _start_labels(
            cfg, learner, supply, train, step, start=start, restored=restored, rank=rank, world=world
        )
        if cfg.eval.every and step and step % cfg.eval.every == 0:
            supply.score(step, learner)
        ordered = time.perf_counter()
        fetched = supply.fetch(step)
        ready = time.perf_counter()
        result = learner.step(fetched.labels, m0, auxiliary(step))
        done = time.perf_counter()
        seconds[ordering] += ordered - began
        seconds["wait"] += ready - ordered
        seconds["train"] += done - ready
        ours = known.pop(step, {}) if _lag(cfg, step) else learner.last_logprobs
        if rank == 0:
            row = _metrics(cfg, step, fetched, result, ours, idle=ready - ordered, total=done - began)
            conductor.report(row)
            stop_on(check_step(row, cfg.alarms))  # after the report: the numbers are on record
        if step + 1 < cfg.steps:
            _between_steps(cfg, learner, supply, conductor, step + 1, rank=rank, halt=fetched.halt)
    return seconds


def _between_steps(
    cfg: RunConfig, learner: Learner, supply: Supply, conductor: Conductor, step: int, *, rank: int, halt: bool
) -> None:
    """Before `step`: a checkpoint where one is due, or where it is the last thing to do. halt: the job was asked to
    end. Raises as `run`."""
    going = conductor.node_is_going() or halt
    if going or (cfg.train.checkpoint_every and step % cfg.train.checkpoint_every == 0):
        conductor.checkpoint(step, learner, supply.pending() if rank == 0 else [])
    if halt:
        conductor.halt(step)
    if going:
        conductor.leave(step)


def _start_labels(
    cfg: RunConfig,
    learner: Learner,
    supply: Supply,
    train: Sequence[TokenizedCase],
    step: int,
    *,
    start: int,
    restored: frozenset[int],
    rank: int,
    world: int,
) -> dict[int, Logprobs]:
    """Start making the labels that are due at `step`, with the current weights: those of version `step`.

    Returns the learner's own label logprobs on these weights, for some cases of the later steps whose labels are due.
    """
    online = cfg.supervision.rule == "online"
    due = [later for later in steps_due(step, start, cfg) if later not in restored]
    if learner_labels(cfg):
        for later in due:
            plan = step_plan(cfg.seed, later, len(train), cfg.batch_size)[rank::world]
            supply.offer(later, step, learner.label_pairs(records_at(train, plan), step))
        return {}
    if online and step % cfg.rollout.sync_every == 0:
        supply.publish(learner, step)
    if rank == 0:
        for later in due:
            supply.request(later, version=step if online else 0)
    # The engines are at work. At `step` itself the update's own forward says what the trainer makes of all cases.
    return {t: _own_logprobs(cfg, learner, train, t, step, rank, world) for t in due if online and t != step}


def _own_logprobs(
    cfg: RunConfig, learner: Learner, train: Sequence[TokenizedCase], later: int, step: int, rank: int, world: int
) -> Logprobs:
    """The learner's label logprobs on a sample of rank 0's cases of step `later`, with the weights of `step`.

    Collective. At most rollout.probe_tokens tokens of x and x∖C or, if its first case is longer, that case; which cases
    these are changes with the order of the epoch.
    """
    plan = step_plan(cfg.seed, later, len(train), cfg.batch_size)[0::world] if rank == 0 else []
    sample: list[TokenizedCase] = []
    left = cfg.rollout.probe_tokens
    for case in (train[row] for row in plan):
        if case.max_response:  # what is answered in free text has no logprobs to compare
            continue
        left -= len(case.prompt) + len(case.ablated)
        if left < 0 and sample:
            break
        sample.append(case)
    pairs = learner.label_pairs(sample, step)
    return {pair.case_id: (pair.cued_logprobs, pair.ablated_logprobs) for pair in pairs}


def _lag(cfg: RunConfig, step: int) -> int:
    return step - label_version(step, cfg.lag, cfg.rollout.sync_every)


def _metrics(
    cfg: RunConfig,
    step: int,
    fetched: StepLabels,
    result: Mapping[str, Any],
    logprobs: Logprobs,
    *,
    idle: float,
    total: float,
) -> StepMetrics:
    """logprobs: the learner's own, of some or all cases of `step`, on the weights that its labels were made with."""
    online = cfg.supervision.rule == "online"
    return StepMetrics(
        step=step,
        requested_agreement=cfg.supervision.agreement if online else None,
        realised_at_labelling=fetched.realised_agreement,
        engine_gap=engine_gap(fetched.pairs, logprobs) if online else None,
        off_format=fetched.off_format,
        prefix_hit_rate=fetched.prefix_hit_rate,
        lag=_lag(cfg, step) if online else None,
        trainer_idle_s=idle,
        rollout_idle_s=fetched.rollout_idle_s,
        relabeler_idle_s=fetched.relabeler_idle_s,
        step_s=total,
        **result,
    )
