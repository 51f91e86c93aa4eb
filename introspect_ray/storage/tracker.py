"""The interface of a tracker, with what every tracker shares."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from introspect_ray.config import flatten

Status = Literal["FINISHED", "FAILED"]


class Tracker(ABC):
    """The record of one run. As a context manager it closes itself: FAILED if the body raised."""

    uri: str | None = None  # MLflow's tracking URI and run id, for child runs; None without MLflow
    run_id: str | None = None

    @abstractmethod
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters, nested ones under dotted names. To be called once per run."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Numbers of one step, nested ones under dotted names. None is skipped. Raises ValueError for NaN or
        infinity and TypeError for anything but a number, naming key and step."""

    @abstractmethod
    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Keep a copy of a file or folder."""

    @abstractmethod
    def flush(self, *, final: bool = True) -> None:
        """Write what is buffered. Not final: what a server refuses may wait for the next flush."""

    @abstractmethod
    def close(self, status: Status = "FINISHED") -> None:
        """Write what is buffered and end the run. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close("FINISHED")
            return
        try:
            self.close("FAILED")
        except Exception as second:  # the error of the body is the one to show
            error.add_note(f"closing the tracker failed too: {second}")


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
