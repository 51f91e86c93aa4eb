"""Table and figure of a joint grid: a sweep over several config keys, or over one whose values are no numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from introspect_ray.scores.metrics import over_seeds

_HEADS = ("seeds", "Self %", "Orig %", "gap (points)", "content", "changed?", "Behavior %")
_PARTS = ("em", "content", "changed_accuracy")
Summaries = Sequence[Mapping[str, Any]]


def by_point(summaries: Summaries, keys: Sequence[str]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """The summaries of each point: they differ in their seeds alone. Points are in the order of the summaries."""
    points: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for summary in summaries:
        points.setdefault(tuple(summary[key] for key in keys), []).append(summary)
    return points


def grid_table(summaries: Summaries, keys: Sequence[str]) -> str:
    """Plain text, one row per point: means over seeds in percent; gaps are Self - Orig, in points."""
    rows: list[tuple[str, ...]] = [(*keys, *_HEADS)]
    for point, group in by_point(summaries, keys).items():
        own, orig = (
            {part: over_seeds([one["explanation"][who][part] for one in group]).mean for part in _PARTS}
            for who in ("self", "orig")
        )
        cells = [f"{100 * own['em']:.1f}", f"{100 * orig['em']:.1f}"]
        cells += [f"{100 * (own[part] - orig[part]):+.1f}" for part in _PARTS]
        cells.append(f"{100 * over_seeds([one['behavior']['em'] for one in group]).mean:.1f}")
        rows.append((*(_text(value) for value in point), str(len(group)), *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def grid_figure(summaries: Summaries, keys: Sequence[str], path: str | Path) -> None:
    """Write a map of the gap (Self - Orig Explanation EM, mean over seeds, in points) over the first two keys.

    One key gives a single row. Means are over all further keys too. Raises ValueError for no summaries.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
    figure = Figure(figsize=(2.2 + 0.9 * len(xs), 1.8 + 0.6 * len(ys)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
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
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _values(summaries: Summaries, key: str) -> list[Any]:
    return sorted({summary[key] for summary in summaries})


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
