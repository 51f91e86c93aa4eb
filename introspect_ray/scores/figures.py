"""The figure of a sweep, after the paper's figures 4 and 5. Summaries are dicts as in summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.scores.aggregate import gaps_by_value
from introspect_ray.scores.drawing import BEHAVIOR, GREY, ORIG, PURPLE, SELF, TEAL, at, leaf, plain_axes, save
from introspect_ray.scores.metrics import over_seeds
from introspect_ray.scores.table import swept_values

LOG_KEYS = {"learning_rate", "weight_decay", "lora_rank"}
AXIS_NAMES = {  # by the last part of the dotted key
    "kl_weight": "behavioural regulariser λ (kl_weight)",
    "agreement": "requested label-self agreement ν (supervision.agreement)",
    "mixing_ratio": "share of second-model labels α (supervision.mixing_ratio)",
    "learning_rate": "learning rate (learning_rate)",
    "lora_rank": "LoRA rank r = α (lora_rank)",
}


@dataclass(frozen=True)
class _Curve:
    path: tuple[str, ...]  # of the score in a summary; in the panel of gaps the part alone
    name: str
    colour: str
    style: str


_BEHAVIOR_CURVES = (
    _Curve(("behavior", "em"), "both answers (Behavior EM)", BEHAVIOR, "-"),
    _Curve(("behavior", "cued"), "with the cue", TEAL, "--"),
    _Curve(("behavior", "ablated"), "without the cue", PURPLE, ":"),
)
_EXPLANATION_CURVES = (
    _Curve(("explanation", "self", "em"), "Self: against E(M_t)", SELF, "-"),
    _Curve(("explanation", "orig", "em"), "Orig: against E(M0)", ORIG, "-"),
)
_GAP_CURVES = (
    _Curve(("em",), "both parts (EM)", BEHAVIOR, "-"),
    _Curve(("content",), "content: the named label", TEAL, "--"),
    _Curve(("changed_accuracy",), "changed?", PURPLE, ":"),
)


def sweep_figure(
    summaries: Sequence[Mapping[str, Any]],
    key: str,
    path: str | Path,
    title: str | None = None,
    *,
    values: Sequence[float] | None = None,
    points: Sequence[Mapping[str, Any]] | None = None,
    untrained: float | None = None,
    constant: float | None = None,
) -> None:
    """Write the analogue of the paper's figures 4 and 5 as an image file (format by suffix).

    Against the swept `key`: (a) Behavior EM with its two parts, (b) Explanation EM of Self (blue) and Orig (orange),
    (c) their paired difference and its parts with 95 % intervals, those of `points` (aggregate.aggregate) if given.
    Lines are means over seeds, dots are single seeds. Whether Self and Orig differ is read off (c) alone: both vary
    together from seed to seed, so intervals of each would overlap where their difference is clear. `untrained`,
    `constant`: the Explanation EM of M0 and of the best constant explanation, drawn as horizontal lines. Raises
    ValueError for no summaries.
    """
    if not summaries:
        raise ValueError("sweep_figure of no summaries")
    swept = swept_values(summaries, key, values)
    gaps = gaps_by_value(summaries, swept, leaf(key), points)
    figure, axes = plain_axes(3, (15, 4.6))
    behavior, explanation, difference = axes
    for axis, curves in ((behavior, _BEHAVIOR_CURVES), (explanation, _EXPLANATION_CURVES)):
        for curve in curves:
            _draw_curve(axis, summaries, swept, curve)
        axis.set_ylabel("held-out test cases (%)")
        axis.set_ylim(0, 100)
    for score, name, style in ((untrained, "M0, untrained", (4, 3)), (constant, "best constant explanation", (1, 2))):
        if score is not None:
            explanation.axhline(100 * score, color=GREY, linewidth=1.2, linestyle=(0, style), label=name)
    _draw_gaps(difference, summaries, swept, gaps)
    for axis, name in zip(axes, ("(a) Behavior EM to M0", "(b) Explanation EM", "(c) Self - Orig, paired over cases")):
        axis.set_title(name, fontsize=11)
        _scale_x(axis, swept, key)
        axis.legend(fontsize=8.5, frameon=False, loc="best")
    first = summaries[0]
    figure.suptitle(title or f"policy {first['policy']}, task {first['task']}, {first['steps']} steps")
    figure.supxlabel(_note(summaries, gaps), fontsize=8, color=GREY)
    save(figure, path)


def _draw_curve(axis: Any, summaries: Sequence[Mapping[str, Any]], swept: Sequence[float], curve: _Curve) -> None:
    groups: dict[float, list[float]] = {}
    for x, summary in sorted(zip(swept, summaries), key=lambda pair: pair[0]):
        groups.setdefault(x, []).append(100 * at(summary, curve.path))
    means = [over_seeds(scores).mean for scores in groups.values()]
    style = {"color": curve.colour, "linestyle": curve.style}
    axis.plot(list(groups), means, label=curve.name, marker="o", markersize=4, linewidth=1.8, **style)
    dots = [100 * at(summary, curve.path) for summary in summaries]
    axis.scatter(swept, dots, s=13, color=curve.colour, alpha=0.45, linewidths=0, zorder=3)


def _draw_gaps(
    axis: Any,
    summaries: Sequence[Mapping[str, Any]],
    swept: Sequence[float],
    gaps: Mapping[float, Mapping[str, Mapping[str, Any]]],
) -> None:
    """Lines with a bar per swept value, side by side so that bars do not cover each other; the seeds' gaps in EM."""
    from matplotlib.transforms import ScaledTranslation

    axis.axhline(0, color=GREY, linewidth=1)
    for curve, aside in zip(_GAP_CURVES, (0, 5, -5)):  # in points of 1/72 inch
        known = [(x, gap[curve.path[0]]) for x, gap in gaps.items() if gap[curve.path[0]]["value"] is not None]
        if not known:
            continue
        shifted = axis.transData + ScaledTranslation(aside / 72, 0, axis.figure.dpi_scale_trans)
        style = {"color": curve.colour, "transform": shifted, "linewidth": 1.2 if aside else 1.8}
        xs, means = [x for x, _ in known], [100 * gap["value"] for _, gap in known]
        axis.plot(xs, means, curve.style, label=curve.name, marker="o", markersize=4, **style)
        barred = [(x, 100 * gap["ci"][0], 100 * gap["ci"][1]) for x, gap in known if gap["ci"] is not None]
        if barred:
            axis.vlines(*zip(*barred), alpha=0.4, **{**style, "linewidth": 4})
    dots = [100 * (at(s, ("explanation", "self", "em")) - at(s, ("explanation", "orig", "em"))) for s in summaries]
    axis.scatter(swept, dots, s=13, color=BEHAVIOR, alpha=0.45, linewidths=0, zorder=3)
    axis.set_ylabel("points")
    ends = [end for by_part in gaps.values() for gap in by_part.values() for end in gap["ci"] or (gap["value"] or 0.0,)]
    low, high = min(0.0, *dots, 100 * min(ends)), max(0.0, *dots, 100 * max(ends))
    room = 0.08 * (high - low) or 1.0
    axis.set_ylim(low - room, high + room)  # by hand: what is shifted counts for no limit


def _note(summaries: Sequence[Mapping[str, Any]], gaps: Mapping[float, Mapping[str, Mapping[str, Any]]]) -> str:
    seeds = len({summary["seed"] for summary in summaries})
    note = f"lines: mean over {seeds} seeds; dots: single seeds" if seeds > 1 else "one seed"
    methods = dict.fromkeys(str(gap["em"]["method"]) for gap in gaps.values() if gap["em"]["ci"] is not None)
    return "; ".join([note, *(f"bars in (c): {method}" for method in methods)])


def _scale_x(axis: Any, swept: Sequence[float], key: str) -> None:
    """symlog for λ (which may be 0), log for LOG_KEYS, else linear; a tick at every swept value."""
    xs = sorted(set(swept))
    positive = [x for x in xs if x > 0]
    if leaf(key) == "kl_weight" and positive and len(xs) > 1:
        axis.set_xscale("symlog", linthresh=min(positive), linscale=0.6)
        axis.set_xlim(xs[0] - 0.3 * min(positive) if xs[0] == 0 else xs[0] / 1.5, xs[-1] * 1.6)
    elif leaf(key) in LOG_KEYS and positive == xs and len(xs) > 1:
        axis.set_xscale("log")
    axis.set_xticks(xs, [f"{x:g}" for x in xs], rotation=45 if len(xs) > 6 else 0)
    axis.minorticks_off()
    axis.set_xlabel(AXIS_NAMES.get(leaf(key), key))
