"""What became of all cells, as JSON (one object per cell and soak, the newest of each) and as a page of Markdown."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.chaos.cells import counts
from tests.chaos.job import REPO
from tests.chaos.phases import PHASES
from tests.chaos.table import CELLS, FAULTS

HEAD = """# Chaos

What happens to a run when something around it breaks. Each cell is a real job on the bundled model organism (two CPU
cores), in a process of its own, to which one thing is done in one phase. Afterwards it must have the weights, labels,
evaluated cases and numbers of a run that nothing happened to, bit for bit: by itself (*survived*), or after one line on
stderr, without a process left behind, and `--resume` (*resumed*). Written by `make chaos`; the table of faults is
`tests/chaos/table.py`.

A phase in italics has no cell: it cannot happen, another cell does the same, or a test of its own holds it.

Seconds are from the fault until the job says so, or the part is back, or the job has ended (*noticed*); and until three
more steps are on record, or the next result is there (*serving*). Goals: 5 s and 30 s.
"""


class Report:
    """Rows by their key, kept in a JSON file beside the page: cells that were not run again stay, with their date and
    commit."""

    def __init__(self, page: Path) -> None:
        self._page, self._file = page, page.with_suffix(".json")
        self._rows: dict[str, dict[str, Any]] = {}
        if self._file.exists():
            self._rows = json.loads(self._file.read_text())

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Written at once: a run of all cells takes hours, and may be ended."""
        when = f"{datetime.now(UTC):%Y-%m-%d}"
        self._rows[key] = {**row, "date": when, "commit": commit()}
        self._file.write_text(json.dumps(self._rows, indent=1, ensure_ascii=False) + "\n")
        self._page.write_text(page(self._rows))


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The page. rows: Outcome.row by "fault x phase", and those of soaks, which have a "kills"."""
    cells = {key: row for key, row in rows.items() if "kills" not in row}
    soaks = [row for row in rows.values() if "kills" in row]
    total = counts(list(cells.values()))
    said = ", ".join(f"{count} {name}" for name, count in total.items())
    dates = sorted({f"{row['date']} at {row['commit']}" for row in rows.values()})
    lines = [HEAD, f"**{said}**, of {len(CELLS)} cells ({', '.join(dates)}).", ""]
    lines += ["| fault | " + " | ".join(PHASES) + " |", "|---" * (len(PHASES) + 1) + "|"]
    for fault in FAULTS.values():
        lines.append(f"| {fault.name} | " + " | ".join(_cell(fault.name, phase, cells) for phase in PHASES) + " |")
    lines += ["", "Seconds after the fault:", "", *_seconds(list(cells.values()))]
    lines += ["", *(_soak(row) for row in soaks)]
    failed = [row for row in cells.values() if row["verdict"] == "failed"]
    lines += [f"- **{row['fault']}, {row['phase']}**: {row['why'][:300]}" for row in failed]
    return "\n".join(lines).rstrip() + "\n"


def _cell(fault: str, phase: str, cells: dict[str, dict[str, Any]]) -> str:
    row = cells.get(f"{fault} x {phase}")
    if row is None:
        return "not run" if phase in FAULTS[fault].cells else f"*{FAULTS[fault].left_out[phase]}*"
    return {"failed": "**failed**", "survived": "survived"}.get(row["verdict"], "resumed")


def _seconds(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| fault | cells | noticed: median, most | serving: median, most |", "|---|---|---|---|"]
    for fault in FAULTS:
        mine = [row for row in rows if row["fault"] == fault]
        if mine:
            spans = (_span([row[key] for row in mine]) for key in ("noticed_s", "serving_s"))
            lines.append(f"| {fault} | {len(mine)} | {' | '.join(spans)} |")
    return lines


def _span(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    return f"{known[len(known) // 2]:.1f}, {known[-1]:.1f}" if known else "–"


def _soak(row: dict[str, Any]) -> str:
    return (
        f"Soak (seed {row['seed']}): {row['kills']} random kills in {row['jobs']} jobs, {row['survived']} survived by "
        f"the job itself, {row['resumed']} by --resume, {row['failed']} failed; noticed after "
        f"{_span(row['noticed_s'])} s (median, most), serving after {_span(row['serving_s'])} s. "
        f"{row['date']} at {row['commit']}."
    )


def commit() -> str:
    """The commit that is checked out, with a + if files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=8", "--exclude=*"],
        cwd=REPO, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
