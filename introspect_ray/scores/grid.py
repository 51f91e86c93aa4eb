"""Table and figure of a joint grid: a sweep over several config keys, or over one whose values are no numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from introspect_ray.scores.drawing import at, plain_axes, save
from introspect_ray.scores.metrics import PARTS, over_seeds
from introspect_ray.scores.table import aligned, gap_cell

_HEADS = ("seeds", "Self %", "Orig %", "gap (points)", "content", "changed?", "Behavior %")
Summaries = Sequence[Mapping[str, Any]]


def by_point(summaries: Summaries, keys: Sequence[str]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """The summaries of each point: they differ in their seeds alone. Points are in the order of the summaries."""
    points: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for summary in summaries:
        points.setdefault(tuple(summary[key] for key in keys), []).append(summary)
    return points


def grid_table(summaries: Summaries, keys: Sequence[str], points: Summaries) -> str:
    """Plain text, one row per point: means over seeds in percent; gaps are Self - Orig in points, with their intervals.

    points: the rows of aggregate.aggregate over `keys`, of the same runs.
    """
    gaps = {tuple(point[key] for key in keys): point["gap"] for point in points}
    rows: list[tuple[str, ...]] = [(*keys, *_HEADS)]
    for point, group in by_point(summaries, keys).items():
        levels = [("explanation", "self", "em"), ("explanation", "orig", "em"), ("behavior", "em")]
        own, orig, behavior = (f"{100 * over_seeds([at(one, path) for one in group]).mean:.1f}" for path in levels)
        cells = [own, orig, *(gap_cell(gaps[point][part]) for part in PARTS), behavior]
        rows.append((*(_text(value) for value in point), str(len(group)), *cells))
    methods = dict.fromkeys(str(point["gap"]["em"]["method"]) for point in points)
    return "\n".join([*aligned(rows), *(f"[ ]: {method}" for method in methods)])


def grid_figure(summaries: Summaries, keys: Sequence[str], path: str | Path) -> None:
    """Write a map of the gap (Self - Orig Explanation EM, mean over seeds, in points) over the first two keys.

    One key gives a single row. Means are over all further keys too. Raises ValueError for no summaries.
    """
    if not summaries:
        raise ValueError("grid_figure of no summaries")
    across, *rest = keys
    xs = _values(summaries, across)
    ys = _values(summaries, rest[0]) if rest else [None]
    gaps: list[list[float]] = [[float("nan")] * len(xs) for _ in ys]
    for point, group in by_point(summaries, keys[:2]).items():
        difference = [one["explanation"]["self"]["em"] - one["explanation"]["orig"]["em"] for one in group]
        row = ys.index(point[1]) if rest else 0
        gaps[row][xs.index(point[0])] = 100 * over_seeds(difference).mean
    figure, (axis,) = plain_axes(1, (2.2 + 0.9 * len(xs), 1.8 + 0.6 * len(ys)), grid=False)
    bound = max((abs(gap) for row in gaps for gap in row if gap == gap), default=1.0) or 1.0
    image = axis.imshow(gaps, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto", origin="lower")
    for y, line in enumerate(gaps):
        for x, gap in enumerate(line):
            if gap == gap:
                colour = "white" if abs(gap) > 0.6 * bound else "black"
                axis.text(x, y, f"{gap:+.1f}", ha="center", va="center", fontsize=9, color=colour)
    axis.set_xticks(range(len(xs)), [_text(x) for x in xs])
    axis.set_yticks(range(len(ys)), [_text(y) for y in ys] if rest else [""])
    axis.set_xlabel(across)
    axis.set_ylabel(rest[0] if rest else "")
    figure.colorbar(image, ax=axis, label="Self − Orig (points)")
    save(figure, path)


def _values(summaries: Summaries, key: str) -> list[Any]:
    return sorted({summary[key] for summary in summaries})


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
