"""The step loop. Every rank runs it; rank 0 conducts. No Ray in here: the supply hides it.

    step t                  consumes                     produces                unblocked by
    ------------------------------------------------------------------------------------------------
    publish (all ranks)     weights of version t         delivery to engines     every rank's gather
    request (rank 0)        step plan, version v         labels of its steps     (never waits)
      engines               prompts, version v           behaviour pairs         delivery of v
      relabeler             pairs, receipts              E_sup(u), buffered      all pairs of step u
    fetch   (all ranks)     labels of step t             this rank's shard       the relabeler
    update  (all ranks)     shard, cached reference      weights of version t+1  every rank's step

Labels of step t come from version `label_version(t)` exactly: t - lag, rounded down to the last
version that was delivered (`sync_every`). At lag 0 the trainer waits for the engines (paper §4.2);
at lag k the labels of the next k steps are made while it trains, and the buffer never holds more
than lag + sync_every steps, because a step is requested only when its version is published.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from introspect_ray.alarms import check_step, stop_on
from introspect_ray.config import RunConfig
from introspect_ray.records import BehaviorPair, Label, StepMetrics, TokenizedCase

if TYPE_CHECKING:  # torch is the trainer's alone; the relabeler and the drivers start without it
    from introspect_ray.learner import Learner


def label_version(step: int, lag: int, sync_every: int) -> int:
    """Weight version that labels of `step` are made with. Example: step 7, lag 1, sync_every 4 -> 4."""
    return max(0, step - lag) // sync_every * sync_every


def steps_of_version(version: int, cfg: RunConfig) -> list[int]:
    """The training steps whose labels come from `version`; all that may be requested once it is delivered."""
    last = min(cfg.steps, version + cfg.lag + cfg.rollout.sync_every)
    first = 0 if version == 0 else version + cfg.lag
    return [t for t in range(first, last) if label_version(t, cfg.lag, cfg.rollout.sync_every) == version]


@dataclass(frozen=True)
class StepLabels:
    """One rank's labels of a step, with what the relabeler measured on the whole step.

    `pairs` are the behaviour pairs the labels were made from, of this rank's shard (empty if fixed).
    """

    labels: Sequence[Label]
    pairs: Sequence[BehaviorPair]
    realised_agreement: float | None  # share of the step's labels equal to E of their pair
    off_format: float | None  # share of the step's answers whose likeliest token is no allowed label
    rollout_s: float
    rollout_idle_s: float
    relabeler_idle_s: float


class Supply(Protocol):
    """Where labels come from: engines and relabeler behind one door."""

    def publish(self, learner: Learner, version: int, probe: TokenizedCase) -> None:
        """Start delivering the learner's weights as `version`; its labels are refused unless every engine confirms
        it, by the probe among others. Collective: every rank calls it."""
        ...

    def request(self, step: int, version: int) -> None:
        """Start making the labels of `step` with `version`. Never waits."""
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
    probe: TokenizedCase,
    *,
    rank: int = 0,
    start: int = 0,
    restored: frozenset[int] = frozenset(),
) -> dict[str, float]:
    """Train from step `start` to cfg.steps; steps in `restored` have their labels from the checkpoint.

    Returns this rank's seconds by activity: "train", "sync" and "wait" (for labels). Raises AlarmError on
    rank 0 where a step is beyond a bound of cfg.alarms.

    Collectives (weight gather, update, checkpoint) are reached by every rank in the same order.
    """
    seconds = {"train": 0.0, "sync": 0.0, "wait": 0.0}
    online = cfg.supervision.rule == "online"
    for step in range(start, cfg.steps):
        began = time.perf_counter()
        if online and step % cfg.rollout.sync_every == 0:
            supply.publish(learner, step, probe)
            if rank == 0:
                for requested in steps_of_version(step, cfg):
                    if requested not in restored:
                        supply.request(requested, version=step)
        elif not online and rank == 0 and step not in restored:
            supply.request(step, version=0)
        published = time.perf_counter()
        fetched = supply.fetch(step)
        ready = time.perf_counter()
        result = learner.step(fetched.labels, m0)
        done = time.perf_counter()
        seconds["sync"] += published - began
        seconds["wait"] += ready - published
        seconds["train"] += done - ready
        if rank == 0:
            row = _metrics(cfg, step, fetched, result, learner, idle=ready - published, total=done - began)
            conductor.report(row)
            stop_on(check_step(row, cfg.alarms))  # after the report: the numbers are on record
        if cfg.train.checkpoint_every and (step + 1) % cfg.train.checkpoint_every == 0 and step + 1 < cfg.steps:
            conductor.checkpoint(step + 1, learner, supply.pending() if rank == 0 else [])
    return seconds


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
        lag=lag if online else step,
        trainer_idle_s=idle,
        rollout_idle_s=fetched.rollout_idle_s,
        relabeler_idle_s=fetched.relabeler_idle_s,
        step_s=total,
    )
