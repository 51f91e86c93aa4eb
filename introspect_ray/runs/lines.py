"""Lines for a person who waits: durations, and how far something is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def duration(seconds: float) -> str:
    """Example: duration(59.4) == "59 s", duration(184) == "3 min 4 s", duration(7260) == "2 h 1 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min {whole % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def activity_line(activity: Mapping[str, Any], now: float) -> str:
    """One line on an activity of the board. now: the time of the board's node, in seconds as of time.time.

    Example: "labels of organism: 12,288 of 60,000 cases, 310/s, 2 min 34 s left".
    """
    what, unit, total, done = (activity[key] for key in ("what", "unit", "total", "done"))
    spent = max(now - activity["since"], 1e-9)
    counted = f"{done:,} of {total:,} {unit}s"
    rate = done / spent
    if not done:
        return f"{what}: {counted} after {duration(spent)}"
    return f"{what}: {counted}, {rate:.3g}/s, {duration((total - done) / rate)} left"
