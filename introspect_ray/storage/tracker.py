"""The interface of a tracker, and what every tracker shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

Status = Literal["FINISHED", "FAILED"]


class Tracker(Protocol):
    """One run's record. As a context manager it closes itself: FAILED if the body raised."""

    uri: str | None  # MLflow tracking URI and run id, for children and for the summary; None without MLflow
    run_id: str | None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters, nested ones under dotted names. Call it once a run."""
        ...

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Numbers of one step, nested ones under dotted names. None is skipped. Raises ValueError for NaN or
        infinity and TypeError for what is no number, naming key and step."""
        ...

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Keep a copy of a file or folder."""
        ...

    def flush(self, *, final: bool = True) -> None:
        """Write what is buffered. Not final: what a server refuses may wait for the next time."""
        ...

    def close(self, status: Status = "FINISHED") -> None:
        """Write what is buffered and end the run. A second call does nothing."""
        ...

    def __enter__(self) -> Tracker: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names. Example: {"a": {"b": 1}, "c": 2} -> {"a.b": 1, "c": 2}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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


class ClosesItself:
    """Context manager of every tracker."""

    uri: str | None = None
    run_id: str | None = None

    def __enter__(self: Any) -> Any:
        return self

    def __exit__(self: Any, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close("FINISHED")
            return
        try:
            self.close("FAILED")
        except Exception as second:  # the body's error is the one to see
            error.add_note(f"closing the tracker failed too: {second}")
