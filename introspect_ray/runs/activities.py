"""What goes on where nothing is trained yet, or no more: lines for the terminal, made of a job's status board.

Phases of more than LINE_S seconds get a line with how far they are and how fast: M0's labels, its reference, the
explanations of an evaluation. They are plain lines, in a terminal as in a log file.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from tqdm import tqdm

from introspect_ray.actors.status import start_board
from introspect_ray.config import RunConfig
from introspect_ray.runs.cluster import on_this_node
from introspect_ray.runs.lines import activity_line

LOOK_S = 5.0
LINE_S = 15.0
_ANSWER_S = 5.0
Say = Callable[[str], None]


def open_board(cfg: RunConfig) -> Any:
    """The handle of a new status board for a job, on this node."""
    about = {
        "output_dir": cfg.output_dir,
        "steps": cfg.steps,
        "policy": cfg.policy,
        "task": cfg.task.name,
        "node": os.uname().nodename,
        "pid": os.getpid(),
    }
    return start_board(about, scheduling_strategy=on_this_node())


class ActivityLines:
    """Prints a line on each activity that has gone on for LINE_S seconds, and again, at longer and longer intervals."""

    def __init__(self, board: Any, say: Say | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """board: handle of a StatusBoard. say: prints a line; None: on stderr, above a progress bar if there is one."""
        self._board, self._say, self._clock = board, say or _say, clock
        self._looked = -LOOK_S
        self._said: dict[tuple[str, float], float] = {}  # by activity, when the last line on it was printed

    def look(self) -> None:
        """Print what is due. To be called often: it asks the board every LOOK_S seconds at most."""
        now = self._clock()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        with suppress(RayError, GetTimeoutError):  # a board that is gone must not end the run
            self.show(ray.get(self._board.activities.remote(), timeout=_ANSWER_S), time.time())

    def show(self, activities: list[dict[str, Any]], now: float) -> None:
        """Print a line on those of the activities that are due at `now` (as of time.time)."""
        for one in activities:
            key, age = (one["what"], one["since"]), now - one["since"]
            last = self._said.get(key, one["since"])
            if now - last < max(LINE_S, age / 10):
                continue
            self._said[key] = now
            self._say(activity_line(one, now))


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()
