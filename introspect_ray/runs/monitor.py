"""Follows a run's step metrics from the driver: into the tracker, and to whoever draws the progress bar."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import ray

from introspect_ray.storage.tracker import Tracker

POLL_S = 0.5


class Monitor:
    """Polls the status board in a thread while the body (Ray Train's blocking fit) runs; drains it at the end."""

    def __init__(
        self,
        status: Any,
        run: str,
        tracker: Tracker,
        on_row: Callable[[dict], None] | None = None,
        flush_every: int = 0,
    ) -> None:
        """flush_every: steps between checkpoints (0: none). The rows before one are made to last with it, since the
        board goes with the driver and a resumed run does not make them again."""
        self._status, self._run, self._tracker, self._on_row = status, run, tracker, on_row
        self._flush_every = flush_every
        self.rows: list[dict] = []
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, name=f"monitor-{run}", daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def raise_failure(self) -> None:
        """Raise what went wrong while following. The run itself went on, and metrics.jsonl has its rows."""
        if self._error is not None:
            raise self._error

    def _follow(self) -> None:
        try:
            while not self._stop.wait(POLL_S):
                self._drain()
            self._drain()
        except BaseException as error:  # raised in the driver's thread by raise_failure
            self._error = self._error or error

    def _drain(self) -> None:
        after = self.rows[-1]["step"] if self.rows else -1
        self._take(ray.get(self._status.rows.remote(self._run, after)))

    def _take(self, rows: Sequence[dict]) -> None:
        for row in rows:
            self.rows.append(row)
            with self._kept():
                self._tracker.log_metrics({key: value for key, value in row.items() if key != "step"}, row["step"])
            if self._on_row:
                self._on_row(row)
        if self._flush_every and any((row["step"] + 1) % self._flush_every == 0 for row in rows):
            with self._kept():
                self._tracker.flush(final=False)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """A tracker's error waits for raise_failure: the other trackers still get every row."""
        try:
            yield
        except Exception as error:
            self._error = self._error or error
