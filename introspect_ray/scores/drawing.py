"""What all figures share: colours, axes without a display, files. matplotlib is imported on use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SELF, ORIG, BEHAVIOR, GREY = "#1f5fa8", "#e07b1a", "#2b2b2b", "#8a8a8a"  # Self blue, Orig orange, as in the paper
TEAL, PURPLE = "#3a9a8f", "#9a5fb0"


def plain_axes(
    count: int, size: tuple[float, float], columns: int | None = None, grid: bool = True
) -> tuple[Any, list[Any]]:
    """A figure on the Agg canvas (no display, no pyplot state) with `count` axes. size: in inches.

    columns: None: all axes in one row. grid: faint lines behind the data, and no frame above and on the right.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    columns = columns or count
    axes = list(figure.subplots(count // columns, columns, squeeze=False).flat)
    for axis in axes if grid else ():
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, path: str | Path) -> None:
    """Write a figure; its format follows from the suffix."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def leaf(key: str) -> str:
    """The last part of a dotted key: "supervision.agreement" and "agreement" name the same field of a summary."""
    return key.rsplit(".", 1)[-1]


def at(summary: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a path of a summary; None where there is none."""
    value: Any = summary
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
