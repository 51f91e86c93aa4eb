"""A mailbox actor: rank 0 posts step metrics, drivers read them for tracking and the progress bar."""

from __future__ import annotations

from dataclasses import asdict

import ray

from introspect_ray.records import StepMetrics


class StatusBoard:
    """Rows of StepMetrics by run, in posting order; re-posted steps (after a restart) replace the old row."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, dict]] = {}
        self._last: dict[str, int] = {}

    def post(self, run: str, metrics: StepMetrics) -> None:
        self._rows.setdefault(run, {})[metrics.step] = asdict(metrics)
        self._last[run] = metrics.step

    def last(self, run: str) -> int | None:
        """The step posted last; after a restart an earlier one than the newest row's."""
        return self._last.get(run)

    def rows(self, run: str, after: int = -1) -> list[dict]:
        """Rows of `run` with step > after, in step order."""
        return [row for step, row in sorted(self._rows.get(run, {}).items()) if step > after]

    def latest(self) -> dict[str, dict]:
        """The newest row of every run."""
        return {run: rows[max(rows)] for run, rows in self._rows.items() if rows}


StatusBoardActor = ray.remote(num_cpus=0)(StatusBoard)
