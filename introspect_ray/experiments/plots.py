"""Small helpers that draw the experiments' figures on the axes and with the colours of scores/drawing.py.

All values are shares in 0..1 and shown in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from introspect_ray.experiments.measure import Bar
from introspect_ray.scores.drawing import BEHAVIOR, GREY, ORIG, PURPLE, SELF, TEAL, plain_axes, save

COLOURS = {"self": SELF, "orig": ORIG, "behavior": BEHAVIOR, "second": TEAL, "mixture": PURPLE, "m0": ORIG}
Draw = Callable[[Sequence[Any]], None]
Levels = tuple[Sequence[float | None], str]  # a value per place, None where there is none; colour


def figure(path: Path, panels: int, draw: Draw, size: tuple[float, float]) -> None:
    """Write a figure of `panels` plain axes, which `draw` fills; the suffix of `path` says the format."""
    made, axes = plain_axes(panels, size)
    draw(axes)
    save(made, path)


def curves(
    axis: Any, xs: Sequence[float], series: Mapping[str, Levels], title: str, lines: Mapping[str, float] | None = None
) -> None:
    """Curves over swept values at equal distances, with a tick at each; series: by name, (values, colour).

    lines: by name, a level that is the same at all values.
    """
    places = list(range(len(xs)))
    for name, (ys, colour) in series.items():
        known = [(x, 100 * y) for x, y in zip(places, ys, strict=True) if y is not None]
        if known:
            axis.plot(*zip(*known, strict=True), "o-", color=colour, label=name, markersize=4, linewidth=1.8)
    for (name, level), dashes in zip((lines or {}).items(), ((4, 3), (1, 2), (6, 2))):
        axis.axhline(100 * level, color=GREY, linewidth=1.2, linestyle=(0, dashes), label=name)
    axis.set_xticks(places, [f"{x:g}" for x in xs], rotation=45 if len(xs) > 5 else 0)
    axis.set_title(title, fontsize=11)
    axis.set_ylabel("held-out cases (%)")
    axis.legend(fontsize=8, frameon=False)


def gaps(
    axis: Any, names: Sequence[str], bars: Mapping[str, Sequence[Bar]], title: str = "Self − Orig, paired"
) -> None:
    """Paired gaps with their intervals, in points, around a line at 0; bars: by name of a series, one per name."""
    colours = (SELF, TEAL, PURPLE, GREY)
    width = 0.8 / max(1, len(bars))
    for number, (series, values) in enumerate(bars.items()):
        at = [place + (number - (len(bars) - 1) / 2) * width for place in range(len(names))]
        mid = [100 * value.value for value in values]
        error = [[m - 100 * v.low for m, v in zip(mid, values, strict=True)],
                 [100 * v.high - m for m, v in zip(mid, values, strict=True)]]  # fmt: skip
        axis.errorbar(at, mid, yerr=error, fmt="o", color=colours[number % 4], label=series, capsize=3, markersize=5)
    axis.axhline(0, color=BEHAVIOR, linewidth=0.9)
    axis.set_xticks(
        range(len(names)), names, rotation=45 if len(names) > 4 else 0, ha="right" if len(names) > 4 else "center"
    )
    axis.set_title(title, fontsize=11)
    axis.set_ylabel("points")
    axis.legend(fontsize=8, frameon=False)


def bars(axis: Any, names: Sequence[str], series: Mapping[str, Levels], title: str) -> None:
    """Groups of bars; series: by name, (a value per group, colour)."""
    width = 0.8 / max(1, len(series))
    for number, (name, (values, colour)) in enumerate(series.items()):
        at = [place + (number - (len(series) - 1) / 2) * width for place in range(len(names))]
        heights = [100 * (value or 0.0) for value in values]
        axis.bar(at, heights, width, color=colour, label=name)
        for x, height, value in zip(at, heights, values, strict=True):
            if value is not None:
                axis.text(x, height, f"{height:.0f}", ha="center", va="bottom", fontsize=7)
    axis.set_xticks(range(len(names)), names, rotation=30 if len(names) > 4 else 0)
    axis.set_ylim(0, 108)
    axis.set_title(title, fontsize=11)
    axis.set_ylabel("held-out cases (%)")
    axis.legend(fontsize=8, frameon=False)
