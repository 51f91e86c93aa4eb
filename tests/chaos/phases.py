"""The phases of a run as they are recognised from outside, by its files and processes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from introspect_ray.scores.evaluation_table import TRAINED
from tests.chaos.job import Job

STEPS, EVERY = 24, 6  # of a training, and between its checkpoints
POLICY = "policy/model.safetensors"
FIRST, SECOND = "trials/kl_weight=0,seed=0", "trials/kl_weight=1,seed=0"  # of a sweep


@dataclass(frozen=True)
class Phase:
    """holds: whether a job is in it. stays: the part that is frozen while a fault is made, as the phase is short."""

    name: str
    holds: Callable[[Job], bool]
    stays: str | None = None


def _trains(job: Job) -> bool:
    """After a checkpoint, and long before the end. On S3 rows come late: there are labels then."""
    if job.store.local_path() is None:
        return bool(job.store.list("labels")) and not job.exists(POLICY)
    return EVERY + 1 < job.steps() < STEPS - 4


def _writes_checkpoint(job: Job) -> bool:
    """Not the first one, so that there is one to go back to."""
    return job.writes("checkpoint") and bool(job.store.list("checkpoints"))


def _evaluates(job: Job) -> bool:
    """The policy is there, those who trained it have gone, and what it said is not written yet."""
    return (
        job.exists(POLICY) and not job.writes("export") and not job.exists(TRAINED) and not job.pids("training worker")
    )


def _between(job: Job) -> bool:
    return job.exists(f"{FIRST}/summary.json") and not job.steps(SECOND)


PHASES = {
    phase.name: phase
    for phase in (
        Phase("before step 0", lambda job: job.exists("run.json") and not job.steps()),
        Phase("mid-step", _trains),
        Phase("checkpoint write", _writes_checkpoint, stays="training worker"),
        Phase("export", lambda job: job.writes("export"), stays="training worker"),
        Phase("evaluation", _evaluates, stays="engine"),
        Phase("between trials", _between, stays="trial"),
    )
}
