"""A tracker whose calls wait in a queue until MLflow takes them, now or in another process (tracking_sender.py)."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.storage import Store
from introspect_ray.storage.reach import Unreachable
from introspect_ray.storage.tracker import Dataset, Status, Tracker, TrainedPolicy, numbers, plain_params
from introspect_ray.storage.tracking_calls import Call, Target, described, read_target, read_waiting, write_target
from introspect_ray.storage.tracking_sender import Sender
from introspect_ray.storage.tracking_store import origin_tags
from introspect_ray.storage.tracking_view import NOTE, page_of

FAILED_S = 5.0  # without a success, when a run has failed or was ended
OPEN_S = 30.0  # for MLflow to make the run, a cold store included
KNOWN_S = 5.0  # for it to answer for a run that it has
_log = logging.getLogger(__name__)


class QueuedTracker(Tracker):
    """A run in MLflow that is told of it by a Sender."""

    def __init__(self, sender: Sender, folder: str, patience_s: float, *, known: bool) -> None:
        """folder: of the run's results. known: whether an earlier process has introduced the run."""
        self._sender, self._folder, self._patience_s, self.known = sender, folder, patience_s, known
        self._closed = False
        self._curves: set[str] = set()  # names of metrics with a value after some step
        self.uri = sender.target.uri

    @property
    def run_id(self) -> str | None:  # type: ignore[override]
        return self._sender.target.run_id

    def _put(self, kind: str, **args: Any) -> None:
        self._sender.put(Call(kind, args, int(time.time() * 1000)))

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._put("params", params=plain_params(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        found = numbers(metrics, step)
        if step:
            self._curves |= found.keys()
        self._put("metrics", metrics=found, step=step)

    def log_step(self, row: Mapping[str, Any]) -> None:
        """Under names that come after those of held-out scores: train_batch.loss, train_batch.explanation_self, ..."""
        self.log_metrics({"train_batch": {key: value for key, value in row.items() if key != "step"}}, row["step"])

    def log_result(self, metrics: Mapping[str, Any], step: int, policy: TrainedPolicy | None = None) -> None:
        found = numbers(metrics, step)
        of = asdict(policy) if policy else None
        self._put("result", metrics=found, step=step, curves=sorted(self._curves & found.keys()), policy=of)

    def announce(self, names: Sequence[str]) -> None:
        self._put("announce", names=list(names))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self._put("tags", tags=dict(tags))

    def describe(self, text: str) -> None:
        self.log_tags({NOTE: text})

    def log_datasets(self, datasets: Sequence[Dataset]) -> None:
        self._put("datasets", datasets=[asdict(one) for one in datasets])

    def show_runs_by(self, keys: Sequence[str]) -> None:
        self._put("view", keys=list(keys))
        if self._sender.run is not None:
            self.page = page_of(self.uri or "", self._sender.run.experiment_id, keys)

    def log_file(self, name: str, folder: str = "") -> None:
        self._put("file", name=name, folder=folder)

    def flush(self) -> None:
        """Have everything sent or written to disk soon; waits for neither."""
        self._sender.press()

    def close(self, status: Status = "FINISHED") -> None:
        """End the run. Waits for MLflow as long as the config allows; after a failure, perhaps with a cluster that is
        about to go, not longer than FAILED_S."""
        if self._closed:
            return
        self._closed = True
        self._put("end", status=status)
        patience_s = self._patience_s if status == "FINISHED" else min(self._patience_s, FAILED_S)
        if waiting := self._sender.close(patience_s):
            _log.warning(
                "MLflow at %s was not told all of this run (%s wait on disk): once it answers, send them by "
                "`introspect-ray track --send %s`",
                self.uri,
                described(waiting),
                shlex.quote(self._folder),
            )


def open_queue(store: Store, target: Target, patience_s: float) -> QueuedTracker:
    """Track a run as `target` says, or go on as `tracking.json` in its folder says, if that is of the same MLflow.

    A server that is away holds up nothing: the run's calls wait. Raises UserError if MLflow answers that it cannot be
    used, for a new run that is no sweep's trial: only there is nothing lost by it.
    """
    before, waiting = _earlier(store)
    known = before is not None and before.uri == target.uri and bool(before.run_id or waiting)
    if before and known:
        target = replace(before, parent=target.parent or before.parent)
    elif target.parent is None:
        target = replace(target, tags=origin_tags(None, None))
    write_target(store, target)
    sender = Sender(store, target, waiting)
    sender.start(KNOWN_S if known else OPEN_S)
    error = sender.error
    if isinstance(error, UserError) and not (known or target.parent or isinstance(error, Unreachable)):
        sender.close(0)
        raise error
    return QueuedTracker(sender, store.join(), patience_s, known=known)


def _earlier(store: Store) -> tuple[Target | None, list[Call]]:
    """Where the run was tracked before, and the calls that wait. What is damaged is told and left out."""
    before, waiting = None, []
    try:
        before = read_target(store)
        waiting = read_waiting(store)
    except UserError as error:
        _log.warning("%s; the run goes on without it", error)
    return before, waiting


def send_waiting(store: Store, parent: str | None, patience_s: float) -> tuple[int, list[Call], Exception | None]:
    """Send what waits in the folder of a run. parent: the MLflow run of the sweep that it is of, if that is known.

    Returns how many calls were sent, those that still wait, and why they do. Raises UserError for a damaged file.
    """
    target, waiting = read_target(store), read_waiting(store)
    if target is None or not waiting:
        return 0, waiting, None
    sender = Sender(store, replace(target, parent=target.parent or parent), waiting, running=False)
    sender.start(patience_s)
    left = sender.close(patience_s)
    return len(waiting) - len(left), left, sender.error
