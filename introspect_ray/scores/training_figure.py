"""The figure of one run's steps, after the paper's figure 9."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from introspect_ray.scores.drawing import BEHAVIOR, ORIG, PURPLE, SELF, TEAL, plain_axes, save

# Title, scale, and (field of StepMetrics, name, colour) of each curve of a panel.
_PANELS = (
    (
        "(a) objective (nats)",
        1,
        (("loss", "loss", BEHAVIOR), ("cross_entropy", "cross-entropy of e", SELF), ("kl", "KL(M0 || M)", ORIG)),
    ),
    (
        "(b) Self and Orig while training, among valid explanations (%)",
        100,
        (("explanation_self", "Self", SELF), ("explanation_orig", "Orig", ORIG)),
    ),
    ("(c) behaviour on the batch (%)", 100, (("behavior_em", "Behavior EM to M0", BEHAVIOR),)),
    (
        "(d) labels that agree with E(M_t) (%)",
        100,
        (
            ("realised_at_labelling", "realised, at labelling", TEAL),
            ("realised_at_consumption", "realised, at consumption", PURPLE),
            ("requested_agreement", "requested", BEHAVIOR),
        ),
    ),
)


def training_figure(rows: Sequence[Mapping[str, Any]], path: str | Path, *, smoothing: float = 0.9) -> None:
    """Write per-step curves of one run (paper fig. 9). rows: dicts with the fields of records.StepMetrics.

    Faint lines are the steps, full lines an exponential moving average (see `smooth`) with weight `smoothing`. Fields
    that are None at every step (the agreement of fixed labels) are left out. Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("training_figure of no rows")
    figure, axes = plain_axes(4, (11, 7.2), columns=2)
    for axis, (name, scale, fields) in zip(axes, _PANELS):
        for field, label, colour in fields:
            _draw_series(axis, rows, field, label, colour, scale, smoothing)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("training step")
        if scale == 100:
            axis.set_ylim(-2, 102)
        if axis.get_legend_handles_labels()[0]:  # free text has no metrics of explanations while training
            axis.legend(fontsize=8.5, frameon=False, loc="best")
    save(figure, path)


def _draw_series(
    axis: Any, rows: Sequence[Mapping[str, Any]], field: str, label: str, colour: str, scale: float, smoothing: float
) -> None:
    points = [
        (row["step"], scale * row[field]) for row in rows if row.get(field) is not None and math.isfinite(row[field])
    ]
    if not points:
        return
    steps, ys = zip(*points)
    style = {"linestyle": "--" if field == "requested_agreement" else "-", "marker": "o" if len(points) == 1 else None}
    axis.plot(steps, ys, color=colour, alpha=0.22, linewidth=0.9)
    axis.plot(steps, smooth(ys, smoothing), color=colour, label=label, linewidth=1.8, **style)


def smooth(ys: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average without bias: y_t = sum weight^(t-i) ys_i / sum weight^(t-i) over i <= t."""
    total = norm = 0.0
    out = []
    for y in ys:
        total, norm = weight * total + y, weight * norm + 1.0
        out.append(total / norm)
    return out
