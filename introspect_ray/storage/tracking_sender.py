"""The thread that tells MLflow of a run, so that the run never waits for it.

    the run's threads      a call is an entry of the queue, and returns at once
    the sender             sends batches; on a failure it writes what waits to tracking/waiting.jsonl and tries again,
                           with pauses that double up to PAUSE_MOST_S
    close                  lets the sender finish, but not longer than `patience_s` after the last call that MLflow
                           took, and SLOW times as long in all
    the next process       starts with what waits: --resume, or `introspect-ray track --send RUN`

What MLflow finds wrong (a changed parameter, say) is a warning and is left out, as nothing would change that.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Sequence

from introspect_ray import patience
from introspect_ray.errors import Outage, UserError, one_line
from introspect_ray.storage import Store
from introspect_ray.storage.tracking_calls import Call, Target, described, write_target, write_waiting
from introspect_ray.storage.tracking_mlflow import MLflowRun, is_final, open_run
from introspect_ray.storage.tracking_store import line_of

GATHER_S = 2.0  # for which calls are gathered before they are sent
GATHER_CALLS = 50
PAUSE_S, PAUSE_MOST_S = 1.0, 60.0  # between two attempts
SAVE_S = 30.0  # between two writings of what waits
SLOW = 10  # patiences for a server that takes one call after another, but slowly
MOST_CALLS = 200_000  # that wait in memory; older metrics are left out then, metrics.jsonl has them
_BATCH = 200  # calls
_log = logging.getLogger(__name__)


class Sender:
    """The queue of one run and the thread that empties it."""

    def __init__(self, store: Store, target: Target, waiting: Sequence[Call], *, running: bool = True) -> None:
        """waiting: calls of an earlier process. running: whether the run goes on, or only its calls are sent."""
        self.target, self._store, self._calls, self._running = target, store, list(waiting), running
        self.run: MLflowRun | None = None  # once MLflow has it
        self.error: Exception | None = None  # of the last attempt; None: it went well
        self._changed = threading.Condition()
        self._disk = threading.Lock()
        self._closing = self._pressed = self._given_up = False
        self._on_disk = bool(waiting)
        self._dropped = self._attempts = 0
        self._heard, self._failing, self._saved = time.monotonic(), 0.0, -math.inf
        self._thread = threading.Thread(target=self._work, name=f"track-{target.name}", daemon=True)

    def start(self, wait_s: float) -> None:
        """Start sending; waits until MLflow has the run or refuses it, but not longer than `wait_s`."""
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self.run or self.error, timeout=wait_s)

    def put(self, call: Call) -> None:
        with self._changed:
            self._calls.append(call)
            if len(self._calls) > MOST_CALLS:
                oldest = next((at for at, one in enumerate(self._calls) if one.kind == "metrics"), 0)
                del self._calls[oldest]
                self._dropped += 1
            if len(self._calls) in (1, GATHER_CALLS):
                self._changed.notify_all()

    def press(self) -> None:
        """Send at once, or write what waits to disk. Waits for neither."""
        with self._changed:
            self._pressed = True
            self._changed.notify_all()

    def close(self, patience_s: float) -> list[Call]:
        """Let everything be sent, for at most `patience_s` without a success, and SLOW times as long in all; what waits
        then is on disk. Returns it.

        A server that has been away for as long already gets one more attempt.
        """
        began = time.monotonic()
        with self._changed:
            self._closing, before = True, self._attempts
            self._changed.notify_all()
            while self._calls and self._thread.is_alive():
                now = time.monotonic()
                silent = now - max(began, self._heard)
                away = self._failing and now - self._failing >= patience_s and self._attempts > before
                if silent >= patience_s or away or now - began >= SLOW * patience_s:
                    break
                self._changed.wait(timeout=min(1.0, patience_s - silent))
            self._given_up = True
            self._changed.notify_all()
            if self._dropped:
                _log.warning("MLflow at %s lacks %d metrics; metrics.jsonl has them", self.target.uri, self._dropped)
        if self._calls or self._on_disk:
            self._save()
        return list(self._calls)

    # --- in the thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        pause = PAUSE_S
        while True:
            try:
                self._connect()
                batch = self._next()
                if not batch:
                    return
                assert self.run is not None
                self.run.send(batch)
            except Exception as error:
                if self.run is not None and is_final(error):
                    self._refused(batch, error)
                    continue
                self._failed(error)
                if not self._pause(pause * random.uniform(0.75, 1.25)):
                    return
                pause = PAUSE_S if self._closing else min(2 * pause, PAUSE_MOST_S)
                continue
            pause = PAUSE_S
            self._sent(batch)

    def _connect(self) -> None:
        if self.run is not None:
            return
        run = open_run(self.target, self._store, running=self._running)
        write_target(self._store, run.target)
        with self._changed:
            self.run, self.target, self.error = run, run.target, None
            self._heard, self._failing = time.monotonic(), 0.0
            self._changed.notify_all()

    def _next(self) -> list[Call]:
        """The calls to send together; none when the queue is closed. Files come last: they need another store."""
        with self._changed:
            while not self._given_up:
                if not self._calls and self._closing:
                    return []
                if self._calls and (self._closing or self._pressed or len(self._calls) >= GATHER_CALLS):
                    break
                woken = self._changed.wait(timeout=GATHER_S if self._calls else None)
                if not woken and self._calls:
                    break
            if self._given_up:
                return []
            return first_batch(self._calls)

    def _sent(self, batch: Sequence[Call]) -> None:
        with self._changed:
            self._take(batch)
            self._heard, self._failing, self.error = time.monotonic(), 0.0, None
            if not self._calls:
                self._pressed = False
            self._changed.notify_all()
        if not self._calls and self._on_disk:
            self._save()

    def _refused(self, batch: Sequence[Call], error: Exception) -> None:
        """Leave the call out that MLflow finds wrong; of several, each is sent alone first."""
        assert self.run is not None
        for call in batch:
            try:
                if len(batch) > 1:
                    self.run.send([call])
                    self._sent([call])
                    continue
            except Exception as again:
                if not is_final(again):
                    return  # the rest is tried again with the next batch
                error = again
            _log.warning("MLflow at %s refuses %s: %s", self.target.uri, _named(call), line_of(error))
            self._sent([call])

    def _failed(self, error: Exception) -> None:
        with self._changed:
            first = not self._failing
            self._attempts += 1
            self._failing, self.error = self._failing or time.monotonic(), error
            pressed, self._pressed = self._pressed, False
            self._changed.notify_all()
        if first and not self._given_up:
            line = one_line(error) if isinstance(error, UserError) else line_of(error)
            _log.warning("MLflow at %s cannot be told now (%s): the run goes on, its rows wait", self.target.uri, line)
        if first or pressed or time.monotonic() - self._saved >= SAVE_S:
            self._save()

    def _pause(self, seconds: float) -> bool:
        """Wait before the next attempt. False: there is none."""
        with self._changed:
            closing = self._closing
            self._changed.wait_for(lambda: self._given_up or self._closing != closing or self._pressed, timeout=seconds)
            return not self._given_up

    def _take(self, batch: Sequence[Call]) -> None:
        gone = {id(call) for call in batch}
        self._calls = [call for call in self._calls if id(call) not in gone]

    def _save(self) -> None:
        """Write what waits to the run's folder. If that fails it is in memory alone, until the next time."""
        with self._disk:
            with self._changed:  # not held while it writes: the run's calls need it
                if self._given_up and threading.current_thread() is self._thread:
                    return  # the file is another process's by now
                waiting = list(self._calls)
            self._saved = time.monotonic()
            try:
                with patience.at_most(0.0):
                    write_waiting(self._store, waiting)
                self._on_disk = bool(waiting)
            except (OSError, UserError, Outage) as error:
                lost = described(waiting)
                _log.warning("%s: cannot be written to disk while MLflow is away (%s)", lost, one_line(error))


def first_batch(calls: Sequence[Call]) -> list[Call]:
    """The calls to send next: up to _BATCH metrics in a row, or another single call. Files come after all others."""
    told = [call for call in calls if call.kind != "file"] or list(calls)
    length = next((at for at, call in enumerate(told[:_BATCH]) if call.kind != "metrics"), len(told[:_BATCH]))
    return told[: max(length, 1)]


def _named(call: Call) -> str:
    keys = ", ".join(map(str, next(iter(call.args.values()), ()))) if call.kind == "metrics" else ""
    return " ".join(filter(None, [call.kind, str(call.args.get("name", "")), keys]))[:200]
