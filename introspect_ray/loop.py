"""The step loop. Every rank runs it; rank 0 conducts. No Ray in here: the supply hides it.

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

Labels of step t come from version `label_version(t)` exactly: t - lag, rounded down to the last
version that was delivered (`sync_every`). At lag 0 the trainer waits for the engines (paper §4.2);
at lag k the labels of the next k steps are made while it trains, and the buffer never holds more
than lag + sync_every steps, because a step is requested only when its version is published. The
learner holds each version before its update, so where it labels nothing is published: it labels the
steps of version t one at a time, so that what is computed together does not depend on the lag.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from introspect_ray.config import RunConfig
from introspect_ray.labels.alarms import check_step, stop_on
from introspect_ray.labels.rules import step_plan
from introspect_ray.records import BehaviorPair, Label, StepMetrics, TokenizedCase

if TYPE_CHECKING:  # torch is the trainer's alone; the relabeler and the drivers start without it
    from introspect_ray.train.learner import Learner

T = TypeVar("T")


def label_version(step: int, lag: int, sync_every: int) -> int:
    """Weight version that labels of `step` are made with. Example: step 7, lag 1, sync_every 4 -> 4."""
    return max(0, step - lag) // sync_every * sync_every


def steps_of_version(version: int, cfg: RunConfig) -> list[int]:
    """The training steps whose labels come from `version`; all that may be requested once it is delivered."""
    last = min(cfg.steps, version + cfg.lag + cfg.rollout.sync_every)
    first = 0 if version == 0 else version + cfg.lag
    return [t for t in range(first, last) if label_version(t, cfg.lag, cfg.rollout.sync_every) == version]


def deal(items: Sequence[T], size: int, engines: int, first: int) -> list[tuple[int, Sequence[T]]]:
    """(engine, group) of each group of `size` items: dealt out in turn, beginning at engine `first`.

    Example: abc in groups of 2 to 2 engines, first 1 -> [(1, ab), (0, c)].
    """
    groups = [items[i : i + size] for i in range(0, len(items), size)]
    return [((first + i) % engines, group) for i, group in enumerate(groups)]


def learner_labels(cfg: RunConfig) -> bool:
    """Whether the training workers label, on their own weights, instead of the engines."""
    return cfg.supervision.rule == "online" and cfg.rollout.engine == "learner"


@dataclass(frozen=True)
class StepLabels:
    """One rank's labels of a step, with what the relabeler measured on the whole step.

    `pairs` are the behaviour pairs the labels were made from, of this rank's shard (empty if fixed).
    """

    labels: Sequence[Label]
    pairs: Sequence[BehaviorPair]
    realised_agreement: float | None  # share of the step's labels equal to E of their pair
    off_format: float | None  # share of the step's answers whose likeliest token is no allowed label
    prefix_hit_rate: float | None  # share of the prompt tokens that the engines had in their prefix cache
    rollout_s: float  # of the engines
    rollout_idle_s: float
    relabeler_idle_s: float


class Supply(Protocol):
    """Where labels come from: engines and relabeler behind one door."""

    def publish(self, learner: Learner, version: int, probe: TokenizedCase) -> None:
        """Start delivering the learner's weights as `version`; labels of it are refused unless the engine that made
        them confirms it, by the probe among others. Collective: every rank calls it."""
        ...

    def request(self, step: int, version: int) -> None:
        """Start making the labels of `step` with `version`. Never waits."""
        ...

    def offer(self, step: int, version: int, pairs: Sequence[BehaviorPair]) -> None:
        """This rank's pairs of `step` (rank, rank + world, ... of its plan), made by the learner with `version`; the
        labels of `step` are made when every rank has offered its own. Never waits."""
        ...

    def fetch(self, step: int) -> StepLabels:
        """This rank's labels of `step`; waits for them. Raises what went wrong while making them."""
        ...

    def pending(self) -> list[Label]:
        """All labels requested so far and not consumed: they belong to a checkpoint."""
        ...


class Conductor(Protocol):
    """What the loop tells the outside: metrics and checkpoints."""

    def report(self, metrics: StepMetrics) -> None: ...

    def checkpoint(self, step: int, learner: Learner, pending: Sequence[Label]) -> None: ...


def run(
    cfg: RunConfig,
    learner: Learner,
    supply: Supply,
    conductor: Conductor,
    m0: Mapping[str, BehaviorPair],
    train: Sequence[TokenizedCase],
    *,
    rank: int = 0,
    start: int = 0,
    restored: frozenset[int] = frozenset(),
) -> dict[str, float]:
    """Train from step `start` to cfg.steps; steps in `restored` have their labels from the checkpoint.

    train: the training cases in plan order; the first is the probe of deliveries. Returns this rank's seconds by
    activity: "train", "sync" (with the engines), "label" (by the learner) and "wait" (for labels). Raises
    AlarmError on rank 0 where a step is beyond a bound of cfg.alarms.

    Collectives (weight gather, labelling, update, checkpoint) are reached by every rank in the same order.
    """
    seconds = {"train": 0.0, "sync": 0.0, "label": 0.0, "wait": 0.0}
    ordering = "label" if learner_labels(cfg) else "sync"
    for step in range(start, cfg.steps):
        began = time.perf_counter()
        _start_labels(cfg, learner, supply, train, step, restored=restored, rank=rank)
        ordered = time.perf_counter()
        fetched = supply.fetch(step)
        ready = time.perf_counter()
        result = learner.step(fetched.labels, m0)
        done = time.perf_counter()
        seconds[ordering] += ordered - began
        seconds["wait"] += ready - ordered
        seconds["train"] += done - ready
        if rank == 0:
            row = _metrics(cfg, step, fetched, result, learner, idle=ready - ordered, total=done - began)
            conductor.report(row)
            stop_on(check_step(row, cfg.alarms))  # after the report: the numbers are on record
        if cfg.train.checkpoint_every and (step + 1) % cfg.train.checkpoint_every == 0 and step + 1 < cfg.steps:
            conductor.checkpoint(step + 1, learner, supply.pending() if rank == 0 else [])
    return seconds


def _start_labels(
    cfg: RunConfig,
    learner: Learner,
    supply: Supply,
    train: Sequence[TokenizedCase],
    step: int,
    *,
    restored: frozenset[int],
    rank: int,
) -> None:
    """Start making the labels that are due at `step`, with the current weights, which are those of version `step`."""
    online = cfg.supervision.rule == "online"
    due = [later for later in (steps_of_version(step, cfg) if online else [step]) if later not in restored]
    if learner_labels(cfg):
        for later in due:
            plan = step_plan(cfg.seed, later, len(train), cfg.batch_size)[rank :: cfg.train.num_workers]
            supply.offer(later, step, learner.label_pairs([train[i] for i in plan], step))
        return
    if online and step % cfg.rollout.sync_every == 0:
        supply.publish(learner, step, train[0])
    if rank == 0:
        for later in due:
            supply.request(later, version=step if online else 0)


def worst_gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest |ours - theirs|; NaN if any is NaN (`max` alone would pass over it)."""
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return max(gaps, key=lambda gap: (gap != gap, gap))


def engine_gap(
    pairs: Sequence[BehaviorPair], logprobs: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
) -> float | None:
    """Largest |trainer - engine| label logprob (nats) over the pairs; None without pairs."""
    ours = [value for pair in pairs for side in logprobs[pair.case_id] for value in side]
    theirs = [value for pair in pairs for side in (pair.cued_logprobs, pair.ablated_logprobs) for value in side]
    return worst_gap(ours, theirs) if pairs else None


def _metrics(
    cfg: RunConfig,
    step: int,
    fetched: StepLabels,
    result: Mapping[str, float],
    learner: Learner,
    *,
    idle: float,
    total: float,
) -> StepMetrics:
    lag = step - label_version(step, cfg.lag, cfg.rollout.sync_every)
    online = cfg.supervision.rule == "online"
    return StepMetrics(
        step=step,
        loss=result["loss"],
        cross_entropy=result["cross_entropy"],
        kl=result["kl"],
        grad_norm=result["grad_norm"],
        explanation_self=result["explanation_self"],
        explanation_orig=result["explanation_orig"],
        behavior_em=result["behavior_em"],
        requested_agreement=cfg.supervision.agreement if online else None,
        realised_at_labelling=fetched.realised_agreement,
        realised_at_consumption=result["realised_at_consumption"],
        engine_gap=engine_gap(fetched.pairs, learner.last_logprobs) if online and lag == 0 else None,
        off_format=fetched.off_format,
        prefix_hit_rate=fetched.prefix_hit_rate,
        lag=lag if online else step,
        trainer_idle_s=idle,
        rollout_idle_s=fetched.rollout_idle_s,
        relabeler_idle_s=fetched.relabeler_idle_s,
        step_s=total,
    )
