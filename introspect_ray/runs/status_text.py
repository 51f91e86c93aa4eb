"""The text of `introspect-ray status`, from the snapshot of a status board. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from introspect_ray.runs.lines import activity_line, duration

_COLUMNS = {
    "loss": ("loss", ".3f"),
    "self": ("explanation_self", ".2f"),
    "orig": ("explanation_orig", ".2f"),
    "beh": ("behavior_em", ".2f"),
    "ν": ("realised_at_labelling", ".2f"),
    "lag": ("lag", "d"),
}


def job_lines(snapshot: Mapping[str, Any]) -> list[str]:
    """The lines on one job: what it is, what it does or waits for since when, and a row for each of its runs.

    snapshot: of StatusBoard.snapshot; its times are those of the board's node.
    """
    about, now = snapshot["about"], snapshot["now"]
    began = time.strftime("%H:%M:%S", time.localtime(about["started"]))
    lines = [
        f"job        {about['output_dir']}, {about['task']} on {about['policy']}, since {began} "
        f"({duration(now - about['started'])}), driver {about['pid']} on {about['node']}"
    ]
    lines += [f"now        {activity_line(one, now)}" for one in snapshot["activities"]]
    lines += [f"waits      {run}: {line}" for run, said in snapshot["waiting"].items() for line in said]
    runs = snapshot["runs"]
    if not runs:
        return [*lines, "runs       no training step is finished yet"]
    return [*lines, *_table(runs, about["steps"], now)]


def _table(runs: Mapping[str, Mapping[str, Any]], steps: int, now: float) -> list[str]:
    """A header and a line for each run, the one that posted last at the end. A run keeps its line when it has ended."""
    rows = [["run", "step", "steps/s", *_COLUMNS, "last step", "checkpoint"]]
    for name, run in runs.items():
        numbers = [_number(run[key], form) for key, form in _COLUMNS.values()]
        rate = _number(run["rate"], ".3g")
        last = f"{duration(now - run['at'])} ago"
        rows.append([name, f"{run['step'] + 1}/{steps}", rate, *numbers, last, _checkpoint(run["checkpoint"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _checkpoint(saved: Mapping[str, Any] | None) -> str:
    """Example: "step 250: 24.5 GB in 61 s, held training up for 2 s"; rank 0's part."""
    if saved is None:
        return "-"
    return (
        f"step {saved['step']}: {saved['bytes'] / 1e9:.3g} GB in {duration(saved['write_s'])}, held training up for "
        f"{saved['stall_s']:.2g} s"
    )
