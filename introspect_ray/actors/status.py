"""The status board: rank 0 of every run posts its step metrics here, and drivers read them while Ray Train runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import ray

from introspect_ray.actors.interim import Answers
from introspect_ray.records import StepMetrics


class StatusBoard:
    """Rows of StepMetrics by run. A step that is posted again, after a restart from a checkpoint, replaces its row."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, dict[str, Any]]] = {}
        self._latest: dict[str, dict[str, Any]] = {}
        self._answers: dict[str, dict[int, Answers]] = {}
        self._waiting: dict[str, list[str]] = {}

    def post(self, run: str, metrics: StepMetrics) -> None:
        row = asdict(metrics)
        self._rows.setdefault(run, {})[metrics.step] = row
        self._latest.pop(run, None)  # the run that posted last stands last
        self._latest[run] = row

    def rows(self, run: str, after: int = -1) -> list[dict[str, Any]]:
        """Rows of `run` with step > after, in step order."""
        return [row for step, row in sorted(self._rows.get(run, {}).items()) if step > after]

    def latest(self) -> dict[str, dict[str, Any]]:
        """The row posted last by each run (after a restart not the one of the highest step), in order of posting."""
        return self._latest

    def post_answers(self, run: str, answers: Answers) -> None:
        """What `run` answers while it trains."""
        self._answers.setdefault(run, {})[answers.step] = answers

    def answers(self, run: str, after: int = -1) -> list[Answers]:
        """Those of `run` of steps > after, in step order. They are forgotten then: nobody else reads them."""
        kept = self._answers.pop(run, {})
        return [one for step, one in sorted(kept.items()) if step > after]

    def wait(self, run: str, lines: list[str]) -> None:
        """Who in `run` waits for which resources since when, a line each; none: nobody."""
        self._waiting.pop(run, None)
        if lines:
            self._waiting[run] = lines

    def waiting(self) -> dict[str, list[str]]:
        """The lines of each run in which somebody waits."""
        return self._waiting


StatusBoardActor = ray.remote(num_cpus=0)(StatusBoard)
