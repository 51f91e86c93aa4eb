"""An event simulation of a run: the real loop (introspect_ray.loop.run) on a clock that only jumps.

The loop decides what is published, requested and fetched when; here only stand a learner and a supply whose
work takes given seconds. An engine does what reaches it in order of arrival: a publication by NCCL, in which all
engines take part, waits behind the labels still being made. Labels of a step are ready when every engine has confirmed
its version and every group is done, as in the relabeler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from introspect_ray.config import RunConfig, override
from introspect_ray.config.compatibility import learner_labels
from introspect_ray.loop import run
from introspect_ray.planning.durations import Durations
from introspect_ray.planning.schedule import Pace
from introspect_ray.records import StepLabels
from introspect_ray.schedule import deal

_METRICS = ("loss", "cross_entropy", "kl", "grad_norm", "explanation_self", "explanation_orig", "behavior_em")


@dataclass
class _Clock:
    now: float = 0.0


class _Learner:
    """Takes the time of an update or of a labelling; trains nothing."""

    last_logprobs: dict[str, Any] = {}  # noqa: RUF012 (never written)

    def __init__(self, clock: _Clock, times: Durations) -> None:
        self._clock, self._times = clock, times

    def step(self, labels: Sequence[Any], m0: Any) -> dict[str, float]:
        self._clock.now += self._times.update
        return {**dict.fromkeys(_METRICS, 0.0), "realised_at_consumption": 1.0}

    def label_pairs(self, cases: Sequence[Any], version: int) -> list[Any]:
        self._clock.now += self._times.label_own
        return []


class _Supply:
    """Engines as queues: each is known by when it is free and how long it has worked."""

    def __init__(self, cfg: RunConfig, clock: _Clock, times: Durations) -> None:
        self._cfg, self._clock, self._times = cfg, clock, times
        self._free = [0.0] * cfg.rollout.num_actors
        self._delivered = 0.0
        self._ready: dict[int, float] = {}
        self.busy = 0.0
        self.waited = 0.0
        self.requests: list[tuple[int, int]] = []  # (step, version), as the loop asked

    def _work(self, engine: int, seconds: float) -> float:
        self._free[engine] = max(self._free[engine], self._clock.now) + seconds
        self.busy += seconds
        return self._free[engine]

    def publish(self, learner: Any, version: int, probe: Any) -> None:
        if self._times.rendezvous:
            self._wait(max(self._free))
            for engine in range(len(self._free)):
                self._work(engine, self._times.gather)
        self._clock.now += self._times.gather
        self._delivered = max(self._work(engine, self._times.deliver) for engine in range(len(self._free)))

    def request(self, step: int, version: int) -> None:
        self.requests.append((step, version))
        if self._cfg.supervision.rule != "online":
            self._ready[step] = self._clock.now
            return
        dealt = deal(range(self._cfg.batch_size), self._cfg.rollout.group_size, len(self._free), step)
        done = [self._work(engine, self._times.label(len(group))) for engine, group in dealt]
        self._ready[step] = max(self._delivered, *done)

    def offer(self, step: int, version: int, pairs: Sequence[Any]) -> None:
        self.requests.append((step, version))
        self._ready[step] = self._clock.now

    def fetch(self, step: int) -> StepLabels:
        self._wait(self._ready.pop(step))
        return StepLabels((), (), None, None, None, 0.0, 0.0, 0.0)

    def pending(self) -> list[Any]:
        return []

    def _wait(self, until: float) -> None:
        self.waited += max(0.0, until - self._clock.now)
        self._clock.now = max(self._clock.now, until)


class _Conductor:
    """Writes down when each step ended."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self.ends: list[float] = []

    def report(self, metrics: Any) -> None:
        self.ends.append(self._clock.now)

    def checkpoint(self, step: int, learner: Any, pending: Sequence[Any]) -> None: ...


@dataclass(frozen=True)
class Simulated:
    """What a simulated run took, its start included."""

    pace: Pace  # over the whole run
    seconds: float
    ends: tuple[float, ...]  # when each step was over
    requests: tuple[tuple[int, int], ...]  # (step, version)


def simulate(cfg: RunConfig, times: Durations, steps: int | None = None) -> Simulated:
    """Run the loop for `steps` (default cfg.steps) steps on virtual time."""
    changes = {"steps": steps or cfg.steps}
    if learner_labels(cfg):  # its loop draws each step's cases: one will do, the durations are of all
        changes |= {"batch_size": 1, "train.num_workers": 1}
    cfg = override(cfg, changes)
    clock = _Clock()
    supply, conductor = _Supply(cfg, clock, times), _Conductor(clock)
    run(cfg, _Learner(clock, times), supply, conductor, {}, [None])  # type: ignore[arg-type]
    total = clock.now
    engines = cfg.rollout.num_actors
    pace = Pace(total / cfg.steps, supply.waited / total, 1 - supply.busy / (engines * total))
    return Simulated(pace, total, tuple(conductor.ends), tuple(supply.requests))
