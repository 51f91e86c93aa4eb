"""The step time of the loop in closed form, from the durations of its parts.

Steps come in cycles of n = sync_every: version v is published (g), delivered (d), and labels the steps
v + lag ... v + lag + n - 1. In the steady state a cycle takes the longest of

    g + n u                                                                       the trainer never waits
    d + b                                                                         the engines never wait
    (g + d + r_j + (w_j n - lag - j) u) / w_j,   w_j = ceil((lag + j + 1) / n)    a version goes round

with u the update, b a cycle's labelling on one engine, r_j the time from a delivery to the labels of its j-th
step (j = 0 ... n - 1), after which the updates up to the next publication follow, w_j cycles after v. At lag 0
and n = 1 this is g + d + r + u: everything in turn. At lag 1 it is max(g + u, d + b, (g + d + r + u) / 2),
so max(g + u, d + b) where all engines share a step (r = b).

Where publishing is a rendezvous (weights from GPU to GPU by NCCL) a publication begins when every engine is free and
takes their time as well, so that a cycle takes at least g + d + r with r = max r_j, the labelling of the busiest
engine, in place of d + b. A version then goes round as above: its publication finds the engines free.

Where the learner labels (rollout.engine=learner) nothing is published and no engine works: every step takes its
labelling and its update, whatever the lag.
"""

from __future__ import annotations

from dataclasses import dataclass

from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import learner_labels
from introspect_ray.planning.durations import Durations
from introspect_ray.schedule import deal


@dataclass(frozen=True)
class Pace:
    """A run's steady state. Idle shares are of the whole time: the trainer's wait for labels and for engines to be
    free, the engines' for work."""

    step: float  # seconds
    trainer_idle: float
    engine_idle: float


def predict(cfg: RunConfig, times: Durations) -> Pace:
    """The pace of cfg (lag, sync_every, batch, groups, engines) with these durations."""
    n, lag = cfg.rollout.sync_every, cfg.lag
    if cfg.supervision.rule != "online":
        return Pace(times.update, 0.0, 1.0)
    if learner_labels(cfg):
        return Pace(times.label_own + times.update, 0.0, 1.0)
    readied = labels_ready(cfg, times)
    shared = times.gather if times.rendezvous else 0.0  # of a publication, by the engines
    work = shared + times.deliver + label_load(cfg, times)
    engines = shared + times.deliver + max(readied) if times.rendezvous else work
    cycle = max(times.gather + n * times.update, engines)
    for j, ready in enumerate(readied):
        rounds = -(-(lag + j + 1) // n)
        trip = times.gather + times.deliver + ready
        cycle = max(cycle, (trip + (rounds * n - lag - j) * times.update) / rounds)
    return Pace(
        step=cycle / n,
        trainer_idle=1 - (times.gather + n * times.update) / cycle,
        engine_idle=1 - work / cycle,
    )


def labels_ready(cfg: RunConfig, times: Durations) -> list[float]:
    """Seconds from a delivery to free engines until each of the sync_every steps asked for is labelled."""
    free = [0.0] * cfg.rollout.num_actors
    ready = []
    for step in range(cfg.rollout.sync_every):
        done = 0.0
        for engine, seconds in _dealt(cfg, times, step):
            free[engine] += seconds
            done = max(done, free[engine])
        ready.append(done)
    return ready


def label_load(cfg: RunConfig, times: Durations) -> float:
    """Seconds of labelling a cycle on one engine, on average: in a round of steps every engine begins once."""
    groups = sum(seconds for _, seconds in _dealt(cfg, times, 0))
    return cfg.rollout.sync_every * groups / cfg.rollout.num_actors


def _dealt(cfg: RunConfig, times: Durations, step: int) -> list[tuple[int, float]]:
    """(engine, seconds) of each group of a step, as the pool deals them."""
    dealt = deal(range(cfg.batch_size), cfg.rollout.group_size, cfg.rollout.num_actors, step)
    return [(engine, times.label(len(group))) for engine, group in dealt]
