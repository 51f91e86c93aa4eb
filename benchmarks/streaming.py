"""Peak memory at ten times the labels or cases over that at one time: does memory stay the same?

Labels: the table of an online run is written as the relabeler writes it, counted as at the end of a run, and audited.
Cases: a JSONL file of long cases is read, split, tokenized with the organism's tokenizer into tables, hashed as for a
label set, and looked up. Each size runs in a process of its own. The ratio is that of the worse of the two. Nothing is
subtracted: interpreter and imports are part of both peaks.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import Clock, child, parser, peak_rss, policy_folder, report, run_main

if TYPE_CHECKING:
    from introspect_ray.config import RunConfig
    from introspect_ray.records import Label

NAME, GOAL = "streaming", "<= 1.1"
LABELS, CASES, FACTOR = 200_000, 20_000, 10
BATCH, WORDS = 64, 100  # labels per step; words per case, of about as many tokens


def measure_labels(count: int) -> dict[str, float]:
    """Seconds and peak memory (bytes) of writing, counting and auditing a table of `count` labels."""
    from introspect_ray.config import RunConfig, override
    from introspect_ray.labels.audit import audit
    from introspect_ray.labels.store import LabelWriter, count_labels
    from introspect_ray.storage import open_store

    online = {"supervision.rule": "online", "supervision.agreement": 0.8}
    cfg = override(RunConfig(), {"steps": count // BATCH, "batch_size": BATCH, **online})
    writing, counting, auditing = Clock(), Clock(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        store.write_json("run.json", cfg.model_dump(mode="json"))
        writer = LabelWriter(store.join("labels"))
        with writing:
            for labels in _steps(cfg):
                writer.append(labels)
            writer.close()
        with counting:
            counts = count_labels(store.join("labels"))
        with auditing:
            found = audit(store)
    if not found.clean or counts.labels != found.labels or found.labels != cfg.steps * BATCH:
        raise RuntimeError(f"{counts} of {cfg.steps * BATCH} labels, and the audit says: {found.report()}")
    return {"peak": peak_rss(), "write_s": writing.wall, "count_s": counting.wall, "audit_s": auditing.wall}


def _steps(cfg: RunConfig) -> Iterator[list[Label]]:
    """The labels of every step of an online run at lag 0, from pairs that are all the same but for their case."""
    from introspect_ray.labels.rules import online_label
    from introspect_ray.records import BehaviorPair

    rule = cfg.supervision
    how = {"agreement": rule.agreement, "wrong_label": rule.wrong_label, "seed": cfg.seed, "source_model": cfg.policy}
    for step in range(cfg.steps):
        pairs = [BehaviorPair(f"case-{i}", "A", "B", (), (), False, False, step) for i in range(cfg.batch_size)]
        yield [online_label(pair, "ABCD", step=step, **how) for pair in pairs]


def measure_cases(path: str, count: int) -> dict[str, float]:
    """Seconds and peak memory (bytes) of reading `path`, which has `count` cases, into tables that are looked up."""
    from introspect_ray.cases.table import CaseTable
    from introspect_ray.cases.tokenize import tokenize_case
    from introspect_ray.config import RolloutConfig, TaskConfig
    from introspect_ray.labels.label_sets import label_set_key
    from introspect_ray.policy import load_tokenizer
    from introspect_ray.tasks import load_cases

    tokenizer = load_tokenizer(policy_folder(small=True))
    reading, hashing = Clock(), Clock()
    with reading:
        sides = load_cases(TaskConfig(name="jsonl", path=path))
        train, test = (CaseTable.build(tokenize_case(case, tokenizer) for case in side) for side in sides)
    with hashing:
        for table in (train, test):
            label_set_key("organism", table, RolloutConfig())
    rng, by_id = random.Random(0), train.by_id
    rows = [rng.randrange(len(train)) for _ in range(1000)]
    if len(train) + len(test) != count or any(by_id[train.case_ids[row]] != train[row] for row in rows):
        raise RuntimeError(f"{len(train)} and {len(test)} cases of {count}, or other cases than were put in")
    return {"peak": peak_rss(), "read_s": reading.wall, "hash_s": hashing.wall}


def write_cases(path: Path, count: int, length: int = WORDS) -> None:
    """`count` cases of `length` words of the organism's questions and a hint, two cases per question."""
    from introspect_ray.organism import FOLDER as ORGANISM

    lines = (ORGANISM / "test.jsonl").read_text().splitlines()
    words = sorted({word for line in lines for word in json.loads(line)["ablated_messages"][0]["content"].split()})
    with path.open("w") as file:
        for i in range(count):
            rng = random.Random(i // 2)
            text = " ".join(rng.choice(words) for _ in range(length))
            turns = [{"role": "user", "content": content} for content in (f"{text}\nHint: {'ABCD'[i % 4]}", text)]
            row = {"id": f"case-{i}", "messages": turns[:1], "ablated_messages": turns[1:], "labels": list("ABCD")}
            file.write(json.dumps(row) + "\n")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--labels", type=int, help="measure this many labels in this process, and stop")
    arguments.add_argument(
        "--cases", type=int, help="measure the cases of --path, which are this many, in this process, and stop"
    )
    arguments.add_argument("--path")
    args = arguments.parse_args()
    if args.labels:
        return print(json.dumps(measure_labels(args.labels)))
    if args.cases:
        return print(json.dumps(measure_cases(args.path, args.cases)))
    shrink = 40 if args.small else 1
    sizes = {"labels": LABELS // shrink, "cases": CASES // shrink}
    with tempfile.TemporaryDirectory() as folder:
        runs = {what: [_run(what, size * k, Path(folder)) for k in (1, FACTOR)] for what, size in sizes.items()}
    for what, (one, ten) in runs.items():
        print(
            f"{what}: {one['peak'] / 2**20:.0f} MB at {sizes[what]}, {ten['peak'] / 2**20:.0f} MB at ten times",
            flush=True,
        )
    worst = {what: ten["peak"] / one["peak"] for what, (one, ten) in runs.items()}
    most = FACTOR * sizes["labels"]
    report(
        NAME,
        max(worst.values()),
        GOAL,
        ratios=worst,
        peak_mb={what: [run["peak"] / 2**20 for run in pair] for what, pair in runs.items()},
        sizes=sizes,
        seconds={what: {k: v for k, v in pair[1].items() if k != "peak"} for what, pair in runs.items()},
        labels_per_second={k: most / runs["labels"][1][f"{k}_s"] for k in ("write", "count", "audit")},
        cases_per_second=FACTOR * sizes["cases"] / runs["cases"][1]["read_s"],
    )


def _run(what: str, size: int, folder: Path) -> dict[str, float]:
    """One part at one size, in a process of its own."""
    path = folder / "cases.jsonl"
    if what == "cases":
        write_cases(path, size)
    return child(["-m", "benchmarks.streaming", f"--{what}", str(size), "--path", str(path)])


if __name__ == "__main__":
    run_main(main)
