"""Step metrics from the status board into the tracker, and onto a progress bar.

The driver polls the board in a thread: Ray Train's fit blocks it, and the trials of a sweep run in another process.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayActorError
from tqdm import tqdm

from introspect_ray.errors import one_line
from introspect_ray.runs.activities import ActivityLines
from introspect_ray.runs.results import warned
from introspect_ray.storage.tracker import Tracker, finite

POLL_S = 0.5
_QUIET_S = 15.0  # between two lines of the bar where the output is not a terminal


@contextmanager
def polling(look: Callable[[], None], name: str) -> Iterator[None]:
    """Call `look` every POLL_S seconds in a thread while the body runs, and once more when it has ended."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_S):
            look()
        look()

    thread = threading.Thread(target=poll, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def shown_activities(status: Any) -> Iterator[Any]:
    """Lines on what goes on, while the body runs. Yields `status`, the handle of a StatusBoard."""
    with polling(ActivityLines(status).look, "activities"):
        yield status


class StepTracking:
    """Copies the step metrics of one run from the status board to its tracker."""

    def __init__(
        self,
        status: Any,
        run: str,
        tracker: Tracker,
        on_row: Callable[[dict[str, Any]], None] | None = None,
        flush_every: int = 0,
        also: Callable[[], None] | None = None,
    ) -> None:
        """on_row: also called with each row. also: called each time the board is looked at. flush_every: steps
        between two checkpoints (0: none). The rows before a checkpoint are flushed with it: a resumed run does not make
        them again, and the board dies with the driver."""
        self._status, self._run, self._tracker, self._on_row = status, run, tracker, on_row
        self._flush_every, self._also = flush_every, also
        self._last_step = -1
        self._said: set[str] = set()

    @contextmanager
    def following(self) -> Iterator[None]:
        """While the body runs, and until its last row is tracked. An error is a warning: rank 0 has all rows."""

        def look() -> None:
            with self._told("step metrics"):
                self.track(ray.get(self._status.rows.remote(self._run, self._last_step)))
            if self._also:
                with self._told("scores while training"):
                    self._also()

        with polling(look, f"track-{self._run}"):
            yield

    def track(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            self._last_step = row["step"]
            with self._told("step metrics"):
                self._tracker.log_step(self._finite(row))
            if self._on_row:
                self._on_row(row)
        if self._flush_every and any((row["step"] + 1) % self._flush_every == 0 for row in rows):
            with self._told("step metrics"):
                self._tracker.flush()

    def _finite(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row without NaN and infinity, which neither JSON nor MLflow's pages have; they are told."""
        kept = finite(row)
        if lost := row.keys() - kept.keys():
            self._say(f"{', '.join(sorted(lost))} not finite, from step {row['step']} on: left out of the metrics")
        return kept

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """An error in the body is a warning, once: later rows are tracked nonetheless, and the run goes on."""
        try:
            yield
        except Exception as error:
            self._say(f"{what}: {one_line(error)}; the run goes on", type(error).__name__ + what)

    def _say(self, line: str, key: str | None = None) -> None:
        """Print a warning, one of a kind."""
        key = key or line.split(",")[0]
        if key not in self._said:
            self._said.add(key)
            warned([line])


@contextmanager
def progress_bar(status: Any, steps: int, name: str) -> Iterator[None]:
    """A bar over the steps of all runs on the status board while the body runs, with the metrics posted last.

    steps: of all runs together. name: in front of the bar; a run of another name is named beside its metrics.
    """
    lines = ActivityLines(status)
    every = 1.0 if sys.stderr.isatty() else _QUIET_S
    with tqdm(total=steps, desc=name, unit="step", mininterval=every, maxinterval=2 * every, dynamic_ncols=True) as bar:

        def look() -> None:
            with suppress(RayActorError):  # a board that is gone must not end the run
                if latest := ray.get(status.latest.remote()):
                    run, row = list(latest.items())[-1]
                    bar.set_postfix_str(describe(row) if run == name else f"{run} {describe(row)}", refresh=False)
                    bar.update(sum(row["step"] + 1 for row in latest.values()) - bar.n)
            lines.look()

        with polling(look, "progress"):
            yield


def describe(row: dict[str, Any]) -> str:
    """Loss, Self, Orig, Behaviour EM and agreement ν of a batch, as far as they are known.

    Example: "loss 0.520 self 0.61 orig 0.55 beh 0.80".
    """
    names = {
        "explanation_self": "self",
        "explanation_orig": "orig",
        "behavior_em": "beh",
        "realised_at_labelling": "ν",
    }
    known = [f"{name} {row[key]:.2f}" for key, name in names.items() if row[key] is not None]
    return " ".join([f"loss {row['loss']:.3f}", *known])
