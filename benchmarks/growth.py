"""The whole job at ten times the cases over one time: do ten times the cases cost ten times as much, and no memory?

    python -m benchmarks.growth [--small] [--base N] [--job train|label]

A JSONL file of random questions with hints is loaded, labelled by vLLM, made into a reference, trained on for one epoch
and evaluated (a fifth of the cases are held out), by `introspect_ray.train` in a process of its own, at 1, 3 and 10
times --base cases. `ratio` is ten times the seconds of a case between 3 and 10 times over those between 1 and 3 times,
so that the fixed cost of a start hides nothing; `wall_10x` is that of the whole jobs (and the ratio with --small).
`memory_10x` is the largest growth of any kind of process (driver, training worker, engine, relabeler): of the anonymous
memory that it held at most, which leaves out mapped files and the object store. --job label is `introspect-ray label`:
the labels alone, in bulk; with --base 100000 the last one is of a million cases.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import child, parser, report, run_main
from benchmarks.streaming import write_cases

NAME, GOAL = "growth", "<= 10.5"
BASE, FACTORS, BATCH, WORDS = 1000, (1, 3, 10), 8, 12
HELD_OUT = 0.2
EVERY_S = 0.5  # between two looks at the memory


def measure(job: str, path: str, count: int) -> dict[str, Any]:
    """Seconds of a job on the `count` cases of `path`, in all and by activity, and the peaks of memory by process."""
    with tempfile.TemporaryDirectory() as folder:
        flat: dict[str, Any] = {"output_dir": folder, "task.name": "jsonl", "task.path": path}
        flat |= {"task.test_fraction": HELD_OUT, "tracking.backend": "none", "alarms.collapse": "off"}
        with peaks() as memory:
            began = time.perf_counter()
            parts = _train(flat, count) if job == "train" else _label(flat, count)
            seconds = time.perf_counter() - began
    return {"seconds": seconds, "parts": parts, "peak_mb": {name: size / 2**20 for name, size in memory.items()}}


def _train(flat: dict[str, Any], count: int) -> dict[str, float]:
    """One epoch; summary.json's seconds. Raises RuntimeError if a case is missing."""
    from introspect_ray import load_config, train

    steps = round(count * (1 - HELD_OUT)) // BATCH
    summary = train(load_config(None, {**flat, "steps": steps, "batch_size": BATCH, "eval.dev_fraction": 0}))
    used = summary["cases"]
    if used["train"] + used["test"] != count:
        raise RuntimeError(f"{used} of {count} cases")
    return summary["timing_s"]


def _label(flat: dict[str, Any], count: int) -> dict[str, float]:
    from introspect_ray import load_config
    from introspect_ray.runs.bulk_label import check_labelling, run_labelling

    todo = check_labelling(load_config(None, flat), explain=False, resume=False, overwrite=True)
    done = run_labelling(todo)
    if todo.cases != count:
        raise RuntimeError(f"{todo.cases} of {count} cases")
    return {"label": done["this_call"]["seconds"]}


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """Bytes of anonymous memory that one process of a kind held at most, by kind, while the body runs: of this process
    and of all that it starts. They are looked at twice a second."""
    found: Counter[str] = Counter()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(EVERY_S):
            for name, size in anonymous(os.getpid()):
                found[name] = max(found[name], size)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def anonymous(root: int) -> list[tuple[str, int]]:
    """(kind, bytes) of a process, which is "driver", and of those below it: an actor's class, or "other"."""
    parents, about = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        except (OSError, ValueError):  # it has ended
            continue
        parents[int(folder.name)] = int(status["PPid"])
        kind = name.removeprefix("ray::").split(".")[0].split("(")[0] if name.startswith("ray::") else "other"
        about[int(folder.name)] = (kind, 1024 * int(status.get("RssAnon", "0 kB").split()[0]))
    rows = []
    for process, (kind, size) in about.items():
        above = process
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            rows.append(("driver" if process == root else kind, size))
    return rows


def grown(one: dict[str, float], ten: dict[str, float]) -> dict[str, float]:
    """Growth by kind of process, of the kinds that the project starts and both jobs have."""
    ours = ("driver", "RayTrainWorker", "RolloutWorker", "Relabeler", "Labeller", "MapWorker")
    return {name: ten[name] / one[name] for name in one if name in ten and name.startswith(ours)}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--base", type=int, default=BASE, help=f"cases at one time (default {BASE})")
    arguments.add_argument("--job", choices=("train", "label"), default="train")
    arguments.add_argument("--path", help=argparse.SUPPRESS)  # measure on this file, of --base cases, and stop
    args = arguments.parse_args()
    if args.path:
        return print(json.dumps(measure(args.job, args.path, args.base)))
    base = 40 if args.small else args.base
    runs = []
    for factor in FACTORS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "cases.jsonl")
            write_cases(path, base * factor, WORDS)
            command = ["-m", "benchmarks.growth", "--job", args.job, "--path", str(path), "--base", str(base * factor)]
            runs.append(child(command))
        print(f"{base * factor:7} cases: {runs[-1]['seconds']:.1f} s, {runs[-1]['peak_mb']}", flush=True)
    one, three, ten = (run["seconds"] for run in runs)
    memory = grown(runs[0]["peak_mb"], runs[2]["peak_mb"])
    late, early = ((b - a) / (n - m) for a, b, m, n in ((three, ten, *FACTORS[1:]), (one, three, *FACTORS[:2])))
    report(
        NAME,
        ten / one if args.small else 10 * late / early,
        GOAL,
        job=args.job,
        base_cases=base,
        wall_10x=ten / one,
        seconds=[one, three, ten],
        parts_10x={name: runs[2]["parts"][name] / value for name, value in runs[0]["parts"].items() if value},
        memory_10x=max(memory.values(), default=None),
        memory=memory,
        peak_mb=[run["peak_mb"] for run in runs],
    )


if __name__ == "__main__":
    run_main(main)
