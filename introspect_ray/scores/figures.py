"""Figures and tables of sweeps and runs, after the paper's figures 4, 5 and 9. matplotlib is imported on use.

Summaries are dicts as in summary.json (see summary.Summary). Shares are shown in percent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.scores.metrics import Spread, over_seeds

SELF, ORIG, BEHAVIOR, GREY = "#1f5fa8", "#e07b1a", "#2b2b2b", "#8a8a8a"  # Self blue, Orig orange, as in the paper
TEAL, PURPLE = "#3a9a8f", "#9a5fb0"
LOG_KEYS = {"learning_rate", "weight_decay", "lora_rank"}
AXIS_NAMES = {  # by the last part of the dotted key
    "kl_weight": "behavioural regulariser λ (kl_weight)",
    "agreement": "requested label-self agreement ν (supervision.agreement)",
    "mixing_ratio": "share of second-model labels α (supervision.mixing_ratio)",
    "learning_rate": "learning rate (learning_rate)",
    "lora_rank": "LoRA rank r = α (lora_rank)",
}
_SELF_EM, _ORIG_EM = ("explanation", "self", "em"), ("explanation", "orig", "em")


@dataclass(frozen=True)
class _Curve:
    path: tuple[str, ...]  # of the score in a summary
    name: str
    colour: str
    style: str


_BEHAVIOR_CURVES = (
    _Curve(("behavior", "em"), "both answers (Behavior EM)", BEHAVIOR, "-"),
    _Curve(("behavior", "cued"), "with the cue", TEAL, "--"),
    _Curve(("behavior", "ablated"), "without the cue", PURPLE, ":"),
)
_EXPLANATION_CURVES = (
    _Curve(_SELF_EM, "Self: against E(M_t)", SELF, "-"),
    _Curve(_ORIG_EM, "Orig: against E(M0)", ORIG, "-"),
)

# Heads and cells are short: with realised agreement and spreads below 10 points a row is under 110 characters wide.
_COLUMNS = ("seeds", "Self %", "Orig %", "gap (points)", "content", "changed?", "Behavior %")
_GAPS = ("em", "content", "changed_accuracy")  # of an explanation's scores: the gap and its parts
_REALISED = (
    ("realised %", ("labels", "realised_at_labelling")),
    ("at use %", ("labels", "realised_at_consumption")),
)

# Panels of the training figure: title, scale, and (field of StepMetrics, name, colour) of each curve.
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


def swept_values(
    summaries: Sequence[Mapping[str, Any]], key: str, values: Sequence[float] | None = None
) -> list[float]:
    """The swept value of each summary: `values` if given, else the field of the summary.

    A summary has no learning_rate or lora_rank, so sweeps of those must pass `values`. Raises ValueError if a summary
    lacks the field, or if there are not as many values as summaries.
    """
    if values is not None:
        if len(values) != len(summaries):
            raise ValueError(f"{len(values)} values of {key} for {len(summaries)} summaries")
        return [float(value) for value in values]
    found = []
    for summary in summaries:
        value = summary.get(_leaf(key), summary["supervision"].get(_leaf(key)))
        if value is None:
            raise ValueError(f"a summary holds no {key!r}; pass the swept values beside the summaries")
        found.append(float(value))
    return found


def sweep_figure(
    summaries: Sequence[Mapping[str, Any]],
    key: str,
    path: str | Path,
    title: str | None = None,
    *,
    values: Sequence[float] | None = None,
    untrained: float | None = None,
) -> None:
    """Write the analogue of the paper's figures 4 and 5 as an image file (format by suffix).

    (a) Behavior EM with its two parts, (b) Explanation EM of Self (blue) and Orig (orange), against the swept `key`.
    Lines are means over seeds, dots are single seeds, bands are 95 % t intervals, from three seeds on (with two, t is
    12.7 and the band would fill the panel). `untrained`: the Explanation EM of M0, drawn as a horizontal line. Raises
    ValueError for no summaries.
    """
    if not summaries:
        raise ValueError("sweep_figure of no summaries")
    swept = swept_values(summaries, key, values)
    figure, (left, right) = _axes(2, (10.5, 4.4))
    behavior, explanation = (_BEHAVIOR_CURVES, "(a) Behavior EM to M0"), (_EXPLANATION_CURVES, "(b) Explanation EM")
    for axis, (curves, name) in ((left, behavior), (right, explanation)):
        for curve in curves:
            _draw_curve(axis, summaries, swept, curve)
        axis.set_title(name, fontsize=11)
        axis.set_ylabel("held-out cases (%)")
        axis.set_ylim(0, 100)
        _scale_x(axis, swept, key)
    if untrained is not None:
        right.axhline(100 * untrained, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)), label="M0, untrained")
    for axis in (left, right):
        axis.legend(fontsize=8.5, frameon=False, loc="best")
    seeds = len({summary["seed"] for summary in summaries})
    first = summaries[0]
    figure.suptitle(title or f"policy {first['policy']}, task {first['task']}, {first['steps']} steps")
    note = f"lines: mean over {seeds} seeds; dots: single seeds" if seeds > 1 else "one seed"
    note += "; bands: 95 % t interval over seeds" if seeds > 2 else ""
    figure.supxlabel(note, fontsize=8, color=GREY)
    _save(figure, path)


def _draw_curve(axis: Any, summaries: Sequence[Mapping[str, Any]], swept: Sequence[float], curve: _Curve) -> None:
    spreads = _by_value(summaries, swept, curve.path)
    xs = list(spreads)
    means = [100 * s.mean for s in spreads.values()]
    sizes = Counter(swept)
    axis.plot(xs, means, curve.style, color=curve.colour, label=curve.name, marker="o", markersize=4, linewidth=1.8)
    banded = [
        (x, 100 * max(0.0, s.lo), 100 * min(1.0, s.hi))
        for x, s in spreads.items()
        if sizes[x] > 2 and s.lo is not None and s.hi is not None
    ]
    if len(banded) > 1:
        axis.fill_between(*zip(*banded), color=curve.colour, alpha=0.13, linewidth=0)
    elif banded:  # a band of one value has no width: show it as an error bar
        x, lo, hi = banded[0]
        axis.vlines(x, lo, hi, color=curve.colour, alpha=0.4, linewidth=3)
    dots = [100 * _at(summary, curve.path) for summary in summaries]
    axis.scatter(swept, dots, s=13, color=curve.colour, alpha=0.45, linewidths=0, zorder=3)


def _by_value(
    summaries: Sequence[Mapping[str, Any]], swept: Sequence[float], path: tuple[str, ...]
) -> dict[float, Spread]:
    groups: dict[float, list[float]] = {}
    for x, summary in sorted(zip(swept, summaries), key=lambda pair: pair[0]):
        groups.setdefault(x, []).append(_at(summary, path))
    return {x: over_seeds(scores) for x, scores in groups.items()}


def _scale_x(axis: Any, swept: Sequence[float], key: str) -> None:
    """symlog for λ (which may be 0), log for LOG_KEYS, else linear; a tick at every swept value."""
    xs = sorted(set(swept))
    positive = [x for x in xs if x > 0]
    if _leaf(key) == "kl_weight" and positive and len(xs) > 1:
        axis.set_xscale("symlog", linthresh=min(positive), linscale=0.6)
        axis.set_xlim(xs[0] - 0.15 * min(positive) if xs[0] == 0 else xs[0] / 1.5, xs[-1] * 1.6)
    elif _leaf(key) in LOG_KEYS and positive == xs and len(xs) > 1:
        axis.set_xscale("log")
    axis.set_xticks(xs, [f"{x:g}" for x in xs], rotation=45 if len(xs) > 6 else 0)
    axis.minorticks_off()
    axis.set_xlabel(AXIS_NAMES.get(_leaf(key), key))


def table(summaries: Sequence[Mapping[str, Any]], key: str, values: Sequence[float] | None = None) -> str:
    """Plain text, one row per swept value: means ± sd over seeds, in percent.

    Self and Orig are Explanation EM. The gap is Self - Orig in points: in EM, in content, and in *changed?*. Its spread
    is that of the gaps of single seeds (paired). "Behavior %" is Behavior EM. A table over ν shows the realised
    agreement, when labels were made and when they were trained on ("at use"), beside the requested one. "n/a": a
    summary lacks the score.
    """
    swept = swept_values(summaries, key, values)
    realised = _REALISED if _leaf(key) == "agreement" else ()
    rows = [(_leaf(key), *[name for name, _ in realised], *_COLUMNS)]
    for x in sorted(set(swept)):
        group = [s for s, value in zip(summaries, swept) if value == x]
        cells = [_cell([_at(s, path) for s in group], digits=2) for _, path in realised]
        cells.append(str(len(group)))
        cells += [_cell([_at(s, path) for s in group]) for path in (_SELF_EM, _ORIG_EM)]
        cells += [_cell([_gap(s, score) for s in group], "+") for score in _GAPS]
        cells.append(_cell([_at(s, ("behavior", "em")) for s in group]))
        rows.append((f"{x:g}", *cells))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def _gap(summary: Mapping[str, Any], score: str) -> float | None:
    """Self - Orig; None where a summary of an earlier version lacks the score."""
    own, orig = (_at(summary, ("explanation", source, score)) for source in ("self", "orig"))
    return None if own is None or orig is None else own - orig


def _cell(scores: Sequence[float | None], sign: str = "", digits: int = 1) -> str:
    """Mean ± sd over seeds, in percent."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):  # the agreement of a run without steps
        return "n/a"
    spread = over_seeds(known)
    mean = f"{100 * spread.mean:{sign}.{digits}f}"
    return mean if spread.sd is None else f"{mean}±{100 * spread.sd:.{digits}f}"


def training_figure(rows: Sequence[Mapping[str, Any]], path: str | Path, *, smoothing: float = 0.9) -> None:
    """Write per-step curves of one run (paper fig. 9). rows: dicts with the fields of records.StepMetrics.

    Faint lines are the steps, full lines an exponential moving average (see `smooth`) with weight `smoothing`. Fields
    that are None at every step (the agreement of fixed labels) are left out. Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("training_figure of no rows")
    figure, axes = _axes(4, (11, 7.2), columns=2)
    for axis, (name, scale, fields) in zip(axes, _PANELS):
        for field, label, colour in fields:
            _draw_series(axis, rows, field, label, colour, scale, smoothing)
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("training step")
        if scale == 100:
            axis.set_ylim(-2, 102)
        axis.legend(fontsize=8.5, frameon=False, loc="best")
    _save(figure, path)


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


def _leaf(key: str) -> str:
    """The last part of a dotted key: "supervision.agreement" and "agreement" name the same field of a summary."""
    return key.rsplit(".", 1)[-1]


def _at(summary: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = summary
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _axes(count: int, size: tuple[float, float], columns: int | None = None) -> tuple[Any, list[Any]]:
    """A figure on the Agg canvas (no display, no pyplot state) with `count` plain axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    columns = columns or count
    axes = list(figure.subplots(count // columns, columns, squeeze=False).flat)
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
