"""Follows a run's step metrics from the driver: into the tracker, and to whoever draws the progress bar."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import ray

from introspect_ray.tracking import Tracker

POLL_S = 0.5


class Monitor:
    """Polls the status board in a thread while the body (Ray Train's blocking fit) runs; drains it at the end."""

    def __init__(self, status: Any, run: str, tracker: Tracker, on_row: Callable[[dict], None] | None = None) -> None:
        self._status, self._run, self._tracker, self._on_row = status, run, tracker, on_row
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
        for row in ray.get(self._status.rows.remote(self._run, after)):
            self.rows.append(row)
            try:
                self._tracker.log_metrics({key: value for key, value in row.items() if key != "step"}, row["step"])
            except Exception as error:  # the other trackers still get every row; raise_failure tells
                self._error = self._error or error
            if self._on_row:
                self._on_row(row)
