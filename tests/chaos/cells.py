"""One cell of the matrix: a real job runs, a fault strikes it in a phase, and it must end at the bits of a run that
nothing happened to, by itself or after one clear line and --resume."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from introspect_ray.scores.evaluation_table import TRAINED
from tests.chaos.faults import nothing_done
from tests.chaos.job import PATIENCE_S, Around, Job, differences, result
from tests.chaos.phases import EVERY, FIRST, PHASES, SECOND, STEPS, Phase
from tests.chaos.surroundings import Needs
from tests.chaos.table import SURVIVES, Fault

ONLINE = [
    "batch_size=16", "task.train_cases=64", "task.test_cases=32", "rollout.engine=transformers",
    "rollout.group_size=8", "supervision.rule=online", "supervision.agreement=0.7", "lag=1",
]  # fmt: skip
TRAINS = [*ONLINE, f"steps={STEPS}", f"train.checkpoint_every={EVERY}"]
JSONL = "tracking.backend=jsonl"
# By kind: the job, its words, and the runs that it leaves, by their folders.
KINDS: dict[str, tuple[str, list[str], list[str]]] = {
    "train": ("train", TRAINS, [""]),
    "pair": ("train", [*TRAINS, "train.num_workers=2"], [""]),
    "long": ("train", [*ONLINE, "steps=120", f"train.checkpoint_every={EVERY}"], [""]),
    "sweep": (
        "sweep_lambda",
        [*ONLINE, "kl_weight=[0,1]", "steps=8", "train.checkpoint_every=4", "sweep.trials_at_once=1"],
        [FIRST, SECOND],
    ),
}
_WATCH_S = 0.1
_LAG = 3  # steps that may have had their labels before the fault
_TRIES = 6  # times that a phase may be over when the fault is about to strike


@dataclass
class Outcome:
    """What became of a cell. noticed_s, serving_s: seconds after the fault; None: not seen, or nothing to serve."""

    fault: str
    phase: str
    expected: str
    verdict: str = "failed"  # or "survived", "stopped clearly, resumed"
    why: str = ""  # of a failed one
    step: int = -1  # at which the fault struck
    noticed_s: float | None = None
    serving_s: float | None = None
    exit: int | None = None
    said: str = ""  # its last line on stderr
    stopped: bool = False  # in one clear line
    seconds: float = 0.0  # of the cell

    @property
    def row(self) -> dict[str, Any]:
        return asdict(self)


def start(kind: str, folder: Path, around: Around, *more: str) -> Job:
    name, words, _ = KINDS[kind]
    tracking = [] if any("tracking.backend" in word for word in around.words) else [JSONL]
    return Job(name, [*words, *tracking, *more], folder, around)


def run_cell(fault: Fault, phase: str, folder: Path, needs: Needs, expected: dict[str, object]) -> Outcome:
    """expected: the `result` of the undisturbed run of this kind."""
    outcome, began = Outcome(fault.name, phase, fault.cells[phase]), time.monotonic()
    with contextlib.ExitStack() as stack:
        around = stack.enter_context(fault.around(folder, needs))
        job = start(fault.kind(phase), folder, around)
        stack.callback(lambda: job.process.poll() is None and job.abandon())
        try:
            _disturb(job, fault, PHASES[phase], outcome)
            _judge(job, fault, around, outcome, expected)
        except AssertionError as error:
            outcome.why = " ".join(str(error).split())[:2000]
        if outcome.why:
            outcome.verdict = "failed"
    outcome.seconds = time.monotonic() - began
    outcome.said, outcome.why = (text.replace(str(folder), "...") for text in (outcome.said, outcome.why))
    return outcome


def _disturb(job: Job, fault: Fault, phase: Phase, outcome: Outcome) -> None:
    """Make the fault in the phase, and watch until the job has ended."""
    if fault.strike is nothing_done:
        outcome.step, struck = 0, job.began
    else:
        struck = _strike(job, fault, phase, outcome)
    _watch(job, fault, struck, outcome)
    outcome.exit = job.end()
    outcome.said = job.lines[-1] if job.lines else ""


def _strike(job: Job, fault: Fault, phase: Phase, outcome: Outcome) -> float:
    for _ in range(_TRIES):
        job.wait_for(lambda: phase.holds(job) and all(map(job.pids, fault.parts)), phase.name)
        with job.frozen(phase.stays):
            if not phase.holds(job):  # it was over before they stood still
                continue
            outcome.step, before = job.steps(), {part: job.pids(part) for part in fault.parts}
            struck = time.monotonic()
            watcher = threading.Thread(target=_notice, args=(job, before, struck, outcome), daemon=True)
            watcher.start()
            if phase.stays is None:
                fault.strike(job)
                return struck
            fault.strike(job)
        return struck
    raise AssertionError(f"{phase.name} was over {_TRIES} times before the fault could strike")


def _notice(job: Job, before: dict[str, list[int]], struck: float, outcome: Outcome) -> None:
    """Until the job says something, a part that was hit is back, or the job has ended."""
    lines = len(job.lines)
    while time.monotonic() < struck + PATIENCE_S:
        back = any(set(job.pids(part)) - set(pids) for part, pids in before.items())
        if len(job.lines) > lines or back or job.process.poll() is not None:
            outcome.noticed_s = time.monotonic() - struck
            return
        time.sleep(_WATCH_S)


def _watch(job: Job, fault: Fault, struck: float, outcome: Outcome) -> None:
    """Until the run makes steps again that need what was hit, or its next result is there. One that stops does not."""
    if outcome.expected != SURVIVES:
        return
    run = SECOND if outcome.phase == "between trials" else ""
    steps = job.steps(run)
    while job.process.poll() is None and time.monotonic() < struck + PATIENCE_S:
        if job.steps(run) >= steps + _LAG or (not run and job.exists(TRAINED)):
            outcome.serving_s = time.monotonic() - struck
            return
        time.sleep(_WATCH_S)


def _judge(job: Job, fault: Fault, around: Around, outcome: Outcome, expected: dict[str, object]) -> None:
    left = job.left()
    assert not left, f"processes are left: {left}"
    kind = fault.kind(outcome.phase)
    if outcome.exit == 0:
        outcome.verdict = "survived"
    else:
        _check_stop(job, fault)
        outcome.stopped = True
        fault.mend(around, job)
        _resume(kind, job, around, outcome)
        outcome.verdict = "stopped clearly, resumed"
    differ = differences(result(around.seen or job.out, KINDS[kind][2]), expected)
    assert not differ, f"other bits than those of the undisturbed run: {differ}"
    assert (outcome.verdict == "survived") == (outcome.expected == SURVIVES), (
        f"{outcome.verdict}, expected: {outcome.expected}; {outcome.said}"
    )


def _check_stop(job: Job, fault: Fault) -> None:
    """One line says what stopped it, and there is no traceback. A driver that was killed cannot say anything."""
    text = job.log.read_text(errors="replace")
    trace = re.search(r"Traceback|Stack trace|\*\*\* SIG|Fatal Python error|Check failed", text)
    assert not trace, f"{trace and trace[0]} in its output: {job.tail()}"
    if not fault.silent:
        last = job.lines[-1] if job.lines else ""
        assert last.startswith(("stopped: ", "error: ")), f"its last line is: {last!r}; {job.tail()}"


def _resume(kind: str, before: Job, around: Around, outcome: Outcome) -> None:
    job = start(kind, before.folder, around, "--resume")
    try:
        code = job.end()
    finally:
        if job.process.poll() is None:
            job.abandon()
    left = job.left()
    assert code == 0, f"--resume ended with {code}: {job.tail()}"
    assert not left, f"processes are left after --resume: {left}"


def undisturbed(kind: str, folder: Path) -> dict[str, object]:
    """The result of a run that nothing happens to, in `folder`/run."""
    job = start(kind, folder, Around([f"cache_dir={folder / 'cache'}"]))
    try:
        assert job.end() == 0, job.tail()
        assert not job.left()
    finally:
        if job.process.poll() is None:
            job.abandon()
    return result(job.out, KINDS[kind][2])


def counts(outcomes: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many cells were tried, survived, stopped clearly, were resumed, and failed."""
    return {
        "tried": len(outcomes),
        "survived": sum(one["verdict"] == "survived" for one in outcomes),
        "stopped clearly": sum(one["stopped"] for one in outcomes),
        "resumed": sum(one["verdict"] == "stopped clearly, resumed" for one in outcomes),
        "failed": sum(one["verdict"] == "failed" for one in outcomes),
    }
