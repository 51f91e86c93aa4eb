"""What a grid of patches says: mean effects, their correlation with an interval, the largest ones. Pure, numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from introspect_ray.patching.grid import DIRECTIONS, Grid

Floats = NDArray[np.float64]
DRAWS = 2000
MIN_GAP = 0.5  # nats


class Correlation(NamedTuple):
    """Pearson's r between mean behaviour NLD and mean explanation NLD over (layer, token) points, and its interval."""

    value: float  # NaN with fewer than three points, or where one of the effects is the same everywhere
    low: float
    high: float
    method: str  # what the interval is, in words
    points: int
    pairs: int  # the most that stand behind a point


def grid_rows(grid: Grid, min_gap: float = MIN_GAP, weighted: bool = False) -> list[dict[str, Any]]:
    """One row per direction, layer and token: the mean NLDs over pairs, and the number of pairs.

    min_gap: a pair is left out of a direction if donor and base differ by less than this (nats) in either reading: its
    NLD divides by nearly nothing. weighted: instead of leaving pairs out, weigh each NLD by its gap; this is the mean
    shift towards the donor over the mean gap. The paper says neither; its means are over all pairs (min_gap=0).
    """
    x, y, x_weights, y_weights = _points(grid, min_gap, weighted)
    ones = np.ones((1, len(grid)))
    means = [_means(values, weights, ones)[0] for values, weights in ((x, x_weights), (y, y_weights))]
    cells = [(d, layer, offset) for d in DIRECTIONS for layer in grid.layers for offset in grid.offsets]
    rows = []
    for index, (direction, layer, offset) in enumerate(cells):
        if pairs := int(np.isfinite(x[:, index]).sum()):
            where = {"side": grid.side, "direction": direction, "layer": layer, "token": offset}
            effects = {"nld_behavior": float(means[0][index]), "nld_explanation": float(means[1][index])}
            rows.append({**where, **effects, "pairs": pairs})
    return rows


def correlations(
    grid: Grid, min_gap: float = MIN_GAP, weighted: bool = False, draws: int = DRAWS, seed: int = 0
) -> dict[str, Correlation]:
    """r by direction, and "all": over the points of both directions (figures 3, 15 and 16).

    min_gap, weighted: as in grid_rows. The interval is the central 95 % of a bootstrap over pairs: the points stay, and
    their means vary.
    """
    values = _points(grid, min_gap, weighted)
    rng = np.random.default_rng(seed)
    chosen = rng.multinomial(len(grid), np.full(len(grid), 1 / len(grid)), size=draws).astype(float)  # [draws, N]
    half = values[0].shape[1] // 2
    parts: Mapping[str, slice] = {
        "all": slice(None),
        DIRECTIONS[0]: slice(None, half),
        DIRECTIONS[1]: slice(half, None),
    }
    return {name: _correlation([one[:, part] for one in values], chosen) for name, part in parts.items()}


def largest_effects(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The largest mean NLD of a point, of "behavior" and of "explanation" (the paper's "maximum NLD"); NaN for none."""
    return {part: max((row[f"nld_{part}"] for row in rows), default=np.nan) for part in ("behavior", "explanation")}


def median_gaps(grid: Grid) -> dict[str, float]:
    """The median |donor - base| of "behavior" and of "explanation", in nats: what NLDs divide by."""
    gaps = {"behavior": grid.behavior_gap_ND, "explanation": grid.explanation_gap_ND}
    return {part: float(np.nanmedian(gap)) for part, gap in gaps.items()}


def _points(grid: Grid, min_gap: float, weighted: bool) -> tuple[Floats, Floats, Floats, Floats]:
    """NLDs and weights [N, points] of behaviour and explanation; NaN where a pair says nothing on either."""
    shape = grid.behavior_NDLP.shape
    gaps = [gap[:, :, None, None] for gap in (grid.behavior_gap_ND, grid.explanation_gap_ND)]
    there = np.isfinite(grid.behavior_NDLP) & np.isfinite(grid.explanation_NDLP)
    there &= np.ones(shape, bool) if weighted else (gaps[0] >= min_gap) & (gaps[1] >= min_gap)
    values = [
        np.where(there, nld, np.nan).reshape(len(grid), -1) for nld in (grid.behavior_NDLP, grid.explanation_NDLP)
    ]
    weights = [np.broadcast_to(gap if weighted else 1.0, shape).reshape(len(grid), -1) for gap in gaps]
    return values[0], values[1], weights[0], weights[1]


def _correlation(points: Sequence[Floats], chosen: Floats) -> Correlation:
    """points: as _points gives them, of some directions. chosen: how often each pair is in each draw, [draws, N]."""
    count = len(points[0])
    behind = np.isfinite(points[0]).sum(0)
    x, y, x_weights, y_weights = (values[:, behind > 0] for values in points)

    def r(draws: Floats) -> Floats:
        return _pearson(_means(x, x_weights, draws), _means(y, y_weights, draws))

    value, drawn = float(r(np.ones((1, count)))[0]), r(chosen)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) and np.isfinite(value) else (np.nan, np.nan)
    pairs = int(behind.max(initial=0))
    method = f"95 % bootstrap over {pairs} pairs of prompts, {len(chosen)} draws"
    return Correlation(value, float(low), float(high), method, x.shape[1], pairs)


def _means(values: Floats, weights: Floats, draws: Floats) -> Floats:
    """Weighted means over pairs, NaN left out: values and weights [N, points], draws [draws, N] -> [draws, points]."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = (draws @ np.where(there, values * weights, 0.0)) / (draws @ np.where(there, weights, 0.0))
    return means


def _pearson(x: Floats, y: Floats) -> Floats:
    """r of each row over its points; NaN with fewer than three points or without variance."""
    if x.shape[1] < 3:
        return np.full(len(x), np.nan)
    x, y = (values - values.mean(1, keepdims=True) for values in (x, y))
    scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    r: Floats = np.divide((x * y).sum(1), scale, out=np.full(len(x), np.nan), where=scale > 0)
    return r
