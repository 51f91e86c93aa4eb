"""Run all benchmarks of this folder, or those named, print one table and compare it with RESULTS.md.

python -m benchmarks.run [NAME ...] [--small] [--write]. A ratio more than 10 % worse than the recorded one is named;
--write records the new ones. --small is a smoke test: nothing is compared or recorded.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Goal, last_object

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"
NO_BENCHMARKS = ("__init__", "common", "run", "step_trace", "structure", "sync_sides", "training_loops", "trl_trainer")
COLUMNS = ("name", "ratio", "goal", "met", "command", "date", "machine", "details")
WORSE = 0.10
TITLE = """# Results

Written by `python -m benchmarks.run --write`. What each benchmark measures stands at the top of its file; `details` are
the other fields of its last line.
"""
Row = dict[str, str]


def discover() -> list[str]:
    """Names of the benchmarks: the modules of this folder that report a ratio."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in NO_BENCHMARKS)


def read_table(text: str) -> dict[str, Row]:
    """Rows of the first table with our columns, by name. Raises ValueError for a row of another width."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells == list(COLUMNS) or set(line) <= set("|- "):
            continue
        if len(cells) != len(COLUMNS):
            raise ValueError(f"a row of {len(cells)} cells in a table of {len(COLUMNS)}: {line[:80]}")
        rows[cells[0]] = dict(zip(COLUMNS, cells, strict=True))
    return rows


def write_table(rows: Mapping[str, Row]) -> str:
    """A Markdown table, sorted by name; bars inside a cell become slashes."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    lines += [tuple(row[column].replace("|", "/") for column in COLUMNS) for _, row in sorted(rows.items())]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def make_row(result: Mapping[str, Any], command: str, date: str, machine: str) -> Row:
    """The row of a benchmark's last line. Raises ValueError for a ratio that is no positive number."""
    known = ("name", "ratio", "goal", "met")
    details = ", ".join(f"{key} {_plain(value)}" for key, value in result.items() if key not in known)
    goal, ratio = Goal.parse(result["goal"]), result["ratio"]
    if not isinstance(ratio, int | float) or not 0 < ratio < math.inf:  # NaN would compare as not worse
        raise ValueError(f"ratio {ratio!r} of {result['name']} is no positive number")
    every = [goal.met(ratio), *(more["met"] for more in result.get("also", {}).values())]
    met = "-" if str(goal) == "none" else "yes" if all(every) else "no"
    cells = (result["name"], f"{ratio:.4g}", str(goal), met, command, date, machine, details)
    return dict(zip(COLUMNS, cells, strict=True))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({', '.join(f'{key} {_plain(item)}' for key, item in value.items())})"
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value)


def verdict(now: Row, before: Row | None) -> str:
    """What changed since `before`: "new", "12 % worse than 7.1 (2026-11-23)" if that is over 10 %, else "as before"."""
    if before is None:
        return "new"
    worse = Goal.parse(now["goal"]).worse_by(float(now["ratio"]), float(before["ratio"]))
    elsewhere = "" if now["machine"] == before["machine"] else ", another machine"
    where = f"than {before['ratio']} ({before['date']}{elsewhere})"
    if worse > WORSE:
        return f"{worse:.0%} WORSE {where}"
    return f"{-worse:.0%} better {where}" if worse < -WORSE else "as before"


def machine_name() -> str:
    """Cores, memory and processor, without a host name."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {models[0] if models else platform.machine()}"


def run_one(name: str, small: bool) -> dict[str, Any]:
    """The last line of one benchmark. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--small"] if small else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return last_object(done.stdout)


def run_all(names: Sequence[str], small: bool) -> tuple[dict[str, Row], list[str]]:
    """(rows by name, names of those that failed)."""
    rows, failed = {}, []
    date, machine = datetime.date.today().isoformat(), machine_name()
    for name in names:
        start = time.perf_counter()
        try:
            rows[name] = make_row(run_one(name, small), f"`python -m benchmarks.{name}`", date, machine)
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        except (RuntimeError, ValueError, KeyError) as error:
            failed.append(name)
            print(f"{name}: failed: {error!r}", file=sys.stderr, flush=True)
    return rows, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all ({', '.join(discover())})")
    parser.add_argument("--small", action="store_true", help="smoke test of seconds each on the bundled organism")
    parser.add_argument("--write", action="store_true", help="record the results in RESULTS.md")
    args = parser.parse_args()
    if args.small and args.write:
        parser.error("--small gives no results to --write")
    if unknown := sorted(set(args.names) - set(discover())):
        parser.error(f"no benchmark {unknown[0]!r}: choose from {', '.join(discover())}")
    before = read_table(RESULTS.read_text()) if RESULTS.is_file() else {}
    rows, failed = run_all(args.names or discover(), args.small)
    print(f"{'name':16} {'ratio':>8}  {'goal':8} {'met':4} {'' if args.small else 'since'}")
    since = {name: "" if args.small else verdict(row, before.get(name)) for name, row in rows.items()}
    for name, row in rows.items():
        print(f"{name:16} {row['ratio']:>8}  {row['goal']:8} {row['met']:4} {since[name]}")
    if worse := [f"{name} ({what})" for name, what in since.items() if "WORSE" in what]:
        print(f"more than {WORSE:.0%} worse: {', '.join(worse)}", flush=True)
    if args.write and rows:
        RESULTS.write_text(f"{TITLE}\n{write_table({**before, **rows})}")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
