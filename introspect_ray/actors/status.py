"""The status board: what a job says about itself while it runs.

Rank 0 of every run posts its step metrics, and the driver copies them to the tracker while Ray Train runs. Parts that
do something long, or wait, say so as an activity. `introspect-ray status` finds the boards of a cluster by their names.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray

from introspect_ray.records import Answers, StepMetrics
from introspect_ray.storage.checkpoints import Saved

log = logging.getLogger(__name__)
NAMESPACE = "introspect-ray"  # of the named boards
PREFIX = "status-board "
_HEARS_S = 1.0  # least time between two reports on how far an activity is
RECENT = 20  # steps over which the rate is taken
KEYS = ("loss", "explanation_self", "explanation_orig", "behavior_em", "realised_at_labelling", "lag")


class StatusBoard:
    """Rows of StepMetrics by run. A step that is posted again, after a restart from a checkpoint, replaces its row."""

    def __init__(self, about: dict[str, Any] | None = None) -> None:
        """about: what `status` shows of the job as it is, e.g. its output folder and its number of steps."""
        self._about = {"started": time.time(), **(about or {})}
        self._rows: dict[str, dict[int, dict[str, Any]]] = {}
        self._latest: dict[str, dict[str, Any]] = {}
        self._times: dict[str, deque[tuple[float, int]]] = {}
        self._checkpoints: dict[str, dict[str, Any]] = {}
        self._activities: dict[str, dict[str, Any]] = {}
        self._answers: dict[str, dict[int, Answers]] = {}
        self._waiting: dict[str, list[str]] = {}
        self._halting = False

    def halt(self) -> None:
        """The job was asked to end. Its runs, in whatever process, ask here and end after a checkpoint."""
        self._halting = True

    def halting(self) -> bool:
        """Whether the job was asked to end."""
        return self._halting

    def post(self, run: str, metrics: StepMetrics) -> None:
        row = asdict(metrics)
        self._rows.setdefault(run, {})[metrics.step] = row
        self._latest.pop(run, None)  # the run that posted last stands last
        self._latest[run] = row
        times = self._times.setdefault(run, deque(maxlen=RECENT))
        if times and times[-1][1] >= metrics.step:  # went back to a checkpoint
            times.clear()
        times.append((time.time(), metrics.step))

    def rows(self, run: str, after: int = -1) -> list[dict[str, Any]]:
        """Rows of `run` with step > after, in step order."""
        return [row for step, row in sorted(self._rows.get(run, {}).items()) if step > after]

    def latest(self) -> dict[str, dict[str, Any]]:
        """The row posted last by each run (after a restart not the one of the highest step), in order of posting."""
        return self._latest

    def saved(self, run: str, saved: Saved) -> None:
        """A checkpoint was stored (rank 0's part of it)."""
        self._checkpoints[run] = {**asdict(saved), "at": time.time()}

    def post_answers(self, run: str, answers: Answers) -> None:
        """What `run` answers while it trains."""
        self._answers.setdefault(run, {})[answers.step] = answers

    def answers(self, run: str, after: int = -1) -> list[Answers]:
        """Those of `run` of steps > after, in step order. They are forgotten then: nobody else reads them."""
        kept = self._answers.pop(run, {})
        return [one for step, one in sorted(kept.items()) if step > after]

    def wait(self, run: str, lines: list[str]) -> None:
        """Who in `run` waits for which resources since when, a line each; none: nobody."""
        self._waiting.pop(run, None)
        if lines:
            self._waiting[run] = lines

    def waiting(self) -> dict[str, list[str]]:
        """The lines of each run in which somebody waits."""
        return self._waiting

    def begin(self, key: str, what: str, total: int, unit: str) -> None:
        """An activity of `total` units begins, under a key of its own."""
        self._activities[key] = {"what": what, "total": total, "unit": unit, "done": 0, "since": time.time()}

    def advance(self, key: str, done: int) -> None:
        """`done` units of the activity are done. Nothing happens if it has ended."""
        if key in self._activities:
            self._activities[key]["done"] = done

    def end(self, key: str) -> None:
        self._activities.pop(key, None)

    def activities(self) -> list[dict[str, Any]]:
        """What is going on, oldest first: {"what", "total", "unit", "done", "since" (a time as of time.time)}."""
        return list(self._activities.values())

    def snapshot(self) -> dict[str, Any]:
        """All that `introspect-ray status` shows: "about", "now", "activities", "waiting", and by run "step", "at",
        "rate" (steps per second over the last RECENT steps, None before the second), the numbers of KEYS and
        "checkpoint"."""
        runs = {
            run: {
                "step": row["step"],
                "at": self._times[run][-1][0],
                "rate": _rate(self._times[run]),
                "checkpoint": self._checkpoints.get(run),
                **{key: row[key] for key in KEYS},
            }
            for run, row in self._latest.items()
        }
        said = {"activities": self.activities(), "waiting": self._waiting}
        return {"about": self._about, "now": time.time(), **said, "runs": runs}


def _rate(times: deque[tuple[float, int]]) -> float | None:
    """Steps per second from the first to the last of `times`."""
    (began, first), (ended, last) = times[0], times[-1]
    return (last - first) / (ended - began) if ended > began else None


StatusBoardActor = ray.remote(num_cpus=0)(StatusBoard)


def start_board(about: dict[str, Any], **options: Any) -> Any:
    """The handle of a new board that `boards` finds. options: of the actor, e.g. where it is placed."""
    name = f"{PREFIX}{uuid.uuid4().hex[:8]}"
    return StatusBoardActor.options(name=name, namespace=NAMESPACE, **options).remote(about)


def boards() -> list[Any]:
    """Handles of all boards of the cluster that this process has joined. A board ends with its job."""
    named = ray.util.list_named_actors(all_namespaces=True)
    names = [one["name"] for one in named if one["namespace"] == NAMESPACE and one["name"].startswith(PREFIX)]
    return [ray.get_actor(name, namespace=NAMESPACE) for name in sorted(names)]


@contextmanager
def activity(board: Any, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Say on a board (None: in the log alone) what goes on while the body runs.

    Yields a function that adds to the `total` units that are done. unit: one of them, e.g. "case".
    """
    key, began, done, told = uuid.uuid4().hex, time.monotonic(), 0, 0.0

    def advance(more: int) -> None:
        nonlocal done, told
        done += more
        if board is not None and time.monotonic() - told >= _HEARS_S:
            told = time.monotonic()
            board.advance.remote(key, done)

    log.info("%s: begins", what)
    if board is not None:
        board.begin.remote(key, what, total, unit)
    try:
        yield advance
    finally:
        log.info("%s: %.1f s", what, time.monotonic() - began)
        if board is not None:
            board.end.remote(key)
