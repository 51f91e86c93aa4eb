"""The table of faults: what is expected of the run in each phase, and why a phase has no cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tests.chaos import faults as make
from tests.chaos import surroundings as around
from tests.chaos.job import Around, Job
from tests.chaos.phases import PHASES

SURVIVES, STOPS = "survives", "stops clearly"
BEFORE, MID, CHECKPOINT, EXPORT, EVALUATION, BETWEEN = PHASES
TRAINING = (BEFORE, MID, CHECKPOINT, EXPORT)  # while there are training workers and a relabeler
GONE, NOT_YET = "it has ended by then", "there is none yet"
LIKE_MID = "as mid-step"
NOT_READ = "nothing reads or writes it then"


def held(test: str) -> str:
    return f"held by tests/ray/{test}"


@dataclass(frozen=True)
class Fault:
    """A row.

    strike: does it to a job. cells: what is expected, by phase. left_out: why there is no cell, by phase. job: the kind
    that is hit, train where the phase does not need a sweep. parts: who is hit, whose return is waited for. around:
    what the job runs in. mend: what the user does before --resume. silent: the driver dies and cannot say why.
    """

    name: str
    strike: Callable[[Job], Any]
    cells: Mapping[str, str]
    left_out: Mapping[str, str]
    job: str = "train"
    parts: tuple[str, ...] = ()
    around: Callable[..., AbstractContextManager[Around]] = around.nothing
    mend: Callable[[Around, Job], Any] = lambda around, job: None
    silent: bool = False

    def kind(self, phase: str) -> str:
        return "sweep" if phase == BETWEEN else self.job


def _all(said: str, *phases: str) -> dict[str, str]:
    return dict.fromkeys(phases, said)


def _rest(said: str, *there: Mapping[str, str]) -> dict[str, str]:
    """The phases that none of `there` has."""
    return {phase: said for phase in PHASES if not any(phase in one for one in there)}


def _row(name: str, strike: Callable[[Job], Any], cells: dict[str, str], *out: dict[str, str], **more: Any) -> Fault:
    left_out = {phase: said for one in reversed(out) for phase, said in one.items() if phase not in cells}
    return Fault(name, strike, cells, left_out, **more)


_KILLS = [
    _row(
        "engine killed", make.killed("engine"),
        _all(SURVIVES, BEFORE, CHECKPOINT, EXPORT, EVALUATION, BETWEEN), {MID: held("test_recovery.py")},
        parts=("engine",),
    ),
    _row(
        "relabeler killed", make.killed("relabeler"),
        _all(SURVIVES, BEFORE, CHECKPOINT, EXPORT), {MID: held("test_recovery.py")}, _all(GONE, EVALUATION, BETWEEN),
        parts=("relabeler",),
    ),
    _row(
        "training worker killed", make.killed("training worker"),
        _all(SURVIVES, BEFORE, CHECKPOINT, EXPORT, BETWEEN), {MID: held("test_recovery.py"), EVALUATION: GONE},
        parts=("training worker",),
    ),
    *(
        _row(
            f"training worker {rank} of 2 killed", make.killed("training worker", rank),
            _all(SURVIVES, BEFORE, CHECKPOINT, EXPORT), {MID: held("test_recovery.py"), EVALUATION: GONE},
            {BETWEEN: "as one worker"}, job="pair", parts=("training worker",),
        )
        for rank in (0, 1)
    ),
    _row(
        "engine and training worker killed", make.both_killed("engine", "training worker"),
        _all(SURVIVES, BEFORE, MID, CHECKPOINT, EXPORT, BETWEEN), {EVALUATION: GONE},
        parts=("engine", "training worker"),
    ),
    _row(
        "relabeler and training worker killed", make.both_killed("relabeler", "training worker"),
        _all(SURVIVES, MID), _all(LIKE_MID, BEFORE, CHECKPOINT, EXPORT), _all(GONE, EVALUATION, BETWEEN),
        parts=("relabeler", "training worker"),
    ),
    _row(
        "engine killed five times", make.five_times("engine"), _all(SURVIVES, MID),
        _all("it lasts for many steps", BEFORE, CHECKPOINT, EXPORT, EVALUATION, BETWEEN), job="long",
        parts=("engine",),
    ),
    _row(
        "training worker killed five times", make.five_times("training worker"), _all(SURVIVES, MID),
        _all("it lasts for many steps", BEFORE, CHECKPOINT, EXPORT, EVALUATION, BETWEEN), job="long",
        parts=("training worker",),
    ),
    _row("status board killed", make.killed("status board"), _all(SURVIVES, *PHASES)),
    _row(
        "driver killed", make.driver_killed, _all(STOPS, BEFORE, CHECKPOINT, EXPORT, EVALUATION, BETWEEN),
        {MID: held("test_jobs.py")}, silent=True,
    ),
    _row(
        "node of the engine killed", make.busy_node_killed, _all(SURVIVES, BEFORE, MID, CHECKPOINT, EVALUATION),
        _all("as checkpoint write", EXPORT), _all("as before step 0", BETWEEN), around=around.cluster,
        parts=("engine",),
    ),
    _row(
        "raylet of a local Ray killed", make.killed("raylet"),
        _all(STOPS, BEFORE, MID, CHECKPOINT, EXPORT, EVALUATION), {BETWEEN: LIKE_MID},
    ),
    _row("GCS of a local Ray killed", make.killed("GCS"), _all(STOPS, *PHASES)),
    _row(
        "SIGTERM", make.asked_to_end, _all(STOPS, CHECKPOINT, EXPORT, EVALUATION, BETWEEN),
        _all(held("test_stopped_jobs.py"), BEFORE, MID),
    ),
]  # fmt: skip
_DISKS = [
    _row(
        "disk of the output full", make.disk_full, _all(STOPS, BEFORE, MID, CHECKPOINT, EXPORT, EVALUATION),
        {BETWEEN: LIKE_MID}, around=around.output_on_small_disk, mend=make.disk_emptied,
    ),
    _row(
        "disk of the cache full", make.nothing_done, _all(STOPS, BEFORE), _rest(NOT_READ, {BEFORE: ""}),
        around=around.cache_on_full_disk, mend=make.disk_emptied,
    ),
    _row(
        "/dev/shm full", make.disk_full, _all(STOPS, MID), _all(LIKE_MID, BEFORE, CHECKPOINT, EXPORT, EVALUATION),
        {BETWEEN: LIKE_MID}, around=around.small_shm, mend=make.disk_emptied,
    ),
]  # fmt: skip
_SERVICES = [
    _row(
        "MLflow down", make.nothing_done, _all(STOPS, BEFORE), _rest("as MLflow killed", {BEFORE: ""}),
        around=around.mlflow_not_started, mend=make.mlflow_started,
    ),
    _row(
        "MLflow slow (1 s a request)", make.slow, _all(SURVIVES, BEFORE), _rest("it lasts", {BEFORE: ""}),
        around=around.mlflow_behind_proxy,
    ),
    _row(
        "MLflow killed", make.mlflow_killed, _all(SURVIVES, MID, EVALUATION),
        _all(LIKE_MID, BEFORE, CHECKPOINT, EXPORT, BETWEEN), around=around.mlflow_behind_proxy,
    ),
    _row(
        "store down", make.store("reset before", None), _all(STOPS, BEFORE, MID, CHECKPOINT, EXPORT, EVALUATION),
        {BETWEEN: LIKE_MID}, around=around.store_behind_proxy, mend=make.answered_again,
    ),
    *(
        _row(
            f"store: {name} for 3 s", make.store(name, 3.0), _all(SURVIVES, BEFORE, EXPORT, EVALUATION),
            _all(held("test_store_faults.py"), MID, CHECKPOINT), {BETWEEN: LIKE_MID},
            around=around.store_behind_proxy,
        )
        for name in ("503", "reset before")
    ),
    _row(
        "store slow (0.2 s a request)", make.slow, _all(SURVIVES, BEFORE), _rest("it lasts", {BEFORE: ""}),
        around=around.store_behind_proxy,
    ),
]  # fmt: skip
_CONTENT = [
    _row(
        "NaN in the policy", make.nothing_done, _all(STOPS, BEFORE),
        _rest("a divergence: held by tests/ray/test_jobs.py", {BEFORE: ""}),
        around=make.policy_with_nan, mend=make.policy_restored,
    ),
    _row(
        "bits flipped in the caches", make.nothing_done, _all(SURVIVES, BEFORE), _rest(NOT_READ, {BEFORE: ""}),
        around=make.damaged_caches,
    ),
    _row(
        "bit flipped in the newest checkpoint", make.checkpoint_flipped, _all(STOPS, MID),
        _rest(NOT_READ, {MID: ""}), silent=True, job="long",
    ),
    _row(
        "bit flipped in a label part", make.label_part_flipped, _all(STOPS, MID), _rest(NOT_READ, {MID: ""}),
        mend=make.label_part_restored,
    ),
    _row(
        "exported policy cut, engine killed", make.cut_policy, _all(STOPS, EVALUATION),
        _rest(NOT_READ, {EVALUATION: ""}),
    ),
    _row(
        "other weights in the policy's folder, engine killed", make.other_weights("organism:second"),
        _all(SURVIVES, MID),
        _rest("as mid-step", {MID: "", EVALUATION: ""}), {EVALUATION: "as the next row"}, around=around.copied_policy,
        mend=make.policy_restored,
    ),
    _row(
        "other weights in the export, engine killed", make.other_weights("organism:second"), _all(STOPS, EVALUATION),
        _rest(NOT_READ, {EVALUATION: ""}),
    ),
    _row(
        "second writer", make.second_writer("train"), _all(SURVIVES, BEFORE, EVALUATION),
        {MID: held("test_stopped_jobs.py")}, _all(LIKE_MID, CHECKPOINT, EXPORT, BETWEEN),
    ),
]  # fmt: skip
FAULTS = {fault.name: fault for fault in (*_KILLS, *_DISKS, *_SERVICES, *_CONTENT)}
CELLS = [(fault, phase) for fault in FAULTS.values() for phase in PHASES if phase in fault.cells]
