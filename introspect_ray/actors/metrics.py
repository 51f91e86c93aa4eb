"""Ray metrics of a run, for Prometheus and cluster/grafana.json. Ray exports each as ray_<name> from every node.

They are recorded where the numbers are: by the trainer's ranks, the relabeler and the checkpoint's thread. Prometheus
finds the nodes by the file that Ray keeps for it (see cluster/README.md). Nothing is recorded outside a Ray process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.metrics import Gauge, Histogram

from introspect_ray.records import StepMetrics
from introspect_ray.storage.checkpoints import Saved

TAGS = ("run", "rank")  # the run's name as in MLflow; the training worker, "0" for what a run has once
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


@dataclass(frozen=True)
class Metric:
    """A gauge keeps the last value; a histogram, of seconds, counts how many were how large."""

    name: str
    kind: Literal["gauge", "histogram"]
    meaning: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric("introspect_step", "gauge", "the last finished training step"),
        Metric("introspect_step_seconds", "histogram", "wall time of a training step"),
        Metric("introspect_loss", "gauge", "loss of a step"),
        Metric("introspect_self", "gauge", "share of a batch whose explanation is E(M)"),
        Metric("introspect_orig", "gauge", "share of a batch whose explanation is E(M0)"),
        Metric("introspect_lag", "gauge", "steps between the weights that were labelled and those that are trained"),
        Metric("introspect_agreement", "gauge", "share of the labels that equal E of their pair"),
        Metric("introspect_trainer_idle_share", "gauge", "share of a step for which the trainer waits for labels"),
        Metric("introspect_rollout_idle_share", "gauge", "share of the engines' time between two requests"),
        Metric("introspect_relabeler_idle_share", "gauge", "share of the relabeler's time in which it labels nothing"),
        Metric("introspect_sync_seconds", "histogram", "the trainer's time for one delivery of weights"),
        Metric("introspect_buffer_steps", "gauge", "steps whose labels are being made or wait to be trained on"),
        Metric("introspect_checkpoint_stall_seconds", "gauge", "for which a checkpoint held training up"),
        Metric("introspect_checkpoint_write_seconds", "gauge", "from the start of a checkpoint until it is stored"),
        Metric("introspect_checkpoint_bytes", "gauge", "of one rank's part of a checkpoint"),
    )
}


def idle_share(idle_s: float, busy_s: float) -> float | None:
    """idle / (idle + busy); None where neither took time. Example: idle_share(1.0, 3.0) == 0.25."""
    whole = idle_s + busy_s
    return idle_s / whole if whole > 0 else None


def step_values(row: StepMetrics) -> dict[str, float | None]:
    """The metrics of one training step that rank 0 knows, by name; None where a run has no such number."""
    return {
        "introspect_step": row.step,
        "introspect_step_seconds": row.step_s,
        "introspect_loss": row.loss,
        "introspect_self": row.explanation_self,
        "introspect_orig": row.explanation_orig,
        "introspect_lag": row.lag,
        "introspect_agreement": row.realised_at_labelling,
        "introspect_trainer_idle_share": idle_share(row.trainer_idle_s, row.step_s - row.trainer_idle_s),
    }


def checkpoint_values(saved: Saved) -> dict[str, float | None]:
    """The metrics of one rank's part of a checkpoint, by name."""
    return {
        "introspect_checkpoint_stall_seconds": saved.stall_s,
        "introspect_checkpoint_write_seconds": saved.write_s,
        "introspect_checkpoint_bytes": saved.bytes,
    }


class Meters:
    """Records metrics of one run (and rank). Each is made when it is first recorded."""

    def __init__(self, run: str, rank: int = 0) -> None:
        self._tags = {"run": run, "rank": str(rank)}
        self._made: dict[str, Any] = {}

    def record(self, values: dict[str, float | None]) -> None:
        """Record metrics of METRICS by name; None and NaN are left out. Raises KeyError for another name."""
        if not ray.is_initialized():  # a test, or a tool that runs the same classes in one process
            return
        for name, value in values.items():
            metric = METRICS[name]
            if value is None or math.isnan(value):
                continue
            if name not in self._made:
                self._made[name] = _make(metric)
            made = self._made[name]
            (made.set if metric.kind == "gauge" else made.observe)(float(value), tags=self._tags)


def _make(metric: Metric) -> Any:
    if metric.kind == "gauge":
        return Gauge(metric.name, description=metric.meaning, tag_keys=TAGS)
    return Histogram(metric.name, description=metric.meaning, boundaries=_SECONDS, tag_keys=TAGS)


def run_name(output_dir: str) -> str:
    """The name of a run in metrics and messages: the last part of its output folder."""
    return output_dir.rstrip("/").rsplit("/", 1)[-1]
