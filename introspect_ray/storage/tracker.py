"""The interface of a tracker, with what every tracker shares."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from introspect_ray.config import flatten
from introspect_ray.errors import Halted, one_line

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Dataset:
    """Data that a run reads. `digest`: of its content, at most 36 characters; `context`: what the run does with it."""

    name: str
    digest: str
    context: Literal["training", "evaluation", "labels"]
    source: dict[str, str]
    cases: int


@dataclass(frozen=True)
class TrainedPolicy:
    """The policy that a run exported: its folder or s3:// address, what distinguishes it, and what it is scored on."""

    name: str
    uri: str
    params: dict[str, str]
    scored_on: Dataset | None


class Tracker(ABC):
    """The record of one run. As a context manager it closes itself: FAILED if the body raised.

    All calls take plain data and return nothing, so that they can wait in a queue (tracking_queue.py). None of them
    waits for a server. What a tracker has no place for it leaves out: only parameters, metrics and files are kept by
    all.
    """

    uri: str | None = None  # MLflow's tracking URI and run id, for child runs; None without MLflow
    run_id: str | None = None  # of MLflow; may come later, where its server was away when the run began
    page: str | None = None  # where to look at the runs, once `show_runs_by` was called
    known = False  # whether it goes on with a run that was introduced before: its parameters, tags and description

    @abstractmethod
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters, nested ones under dotted names. To be called once per run."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Numbers of one step, nested ones under dotted names. None is skipped. Raises ValueError for NaN or
        infinity and TypeError for anything but a number, naming key and step."""

    def log_step(self, row: Mapping[str, Any]) -> None:
        """One training step: the fields of StepMetrics, measured on its batch."""
        self.log_metrics({key: value for key, value in row.items() if key != "step"}, row["step"])

    def log_result(self, metrics: Mapping[str, Any], step: int, policy: TrainedPolicy | None = None) -> None:
        """Numbers that a run has once, as they are after `step` steps, and the policy that they are of. Errors as of
        log_metrics."""
        self.log_metrics(metrics, step)

    def announce(self, names: Sequence[str]) -> None:
        """Names of results to come, the most important first."""
        return

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Texts by which runs are found."""
        return

    def describe(self, text: str) -> None:
        """What a reader should know of the run, in Markdown; replaces what was there."""
        return

    def log_datasets(self, datasets: Sequence[Dataset]) -> None:
        """The data that the run reads."""
        return

    def show_runs_by(self, keys: Sequence[str]) -> None:
        """Let the experiment offer a table of its runs with columns for these keys."""
        return

    @abstractmethod
    def log_file(self, name: str, folder: str = "") -> None:
        """Keep a copy of the file `name` of the run's output folder, in `folder` of its artifacts."""

    @abstractmethod
    def flush(self) -> None:
        """Write what is buffered."""

    @abstractmethod
    def close(self, status: Status = "FINISHED") -> None:
        """Write what is buffered and end the run. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close("FINISHED")
            return
        told = isinstance(error, Halted | KeyboardInterrupt)
        try:
            self.log_tags({"stopped" if told else "failed": one_line(error)})
            self.close("KILLED" if told else "FAILED")
        except Exception as second:  # the error of the body is the one to show
            error.add_note(f"closing the tracker failed too: {second}")


def plain_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as texts under dotted names. Example: {"task": {"name": "aita"}, "steps": 2} -> {"task.name": "aita",
    "steps": "2"}"""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(params).items()}


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the values that are NaN or infinite."""
    return {key: value for key, value in row.items() if not (isinstance(value, float) and not math.isfinite(value))}


def numbers(metrics: Mapping[str, Any], step: int) -> dict[str, float]:
    """The metrics to log: flat, without None. Raises ValueError for NaN and infinity, TypeError for non-numbers."""
    out: dict[str, float] = {}
    for key, value in flatten(metrics).items():
        if value is None:
            continue
        if not isinstance(value, int | float):
            raise TypeError(f"metric {key!r} at step {step} is {type(value).__name__} {value!r}, not a number")
        if not math.isfinite(value):
            raise ValueError(f"metric {key!r} at step {step} is {value}: the run has diverged or a count was zero")
        out[key] = value
    return out
