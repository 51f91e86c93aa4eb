"""Checks a run's label table against its config. What a label's provenance decides is computed again and compared.

The table is read one part at a time: memory holds one part (some thousand labels) and eight bytes per step of the run.
Nothing of the trainer or of Ray is imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from introspect_ray.cli import Arguments
from introspect_ray.config import RunConfig, override
from introspect_ray.errors import UserError
from introspect_ray.labels.alarms import AgreementCounts
from introspect_ray.labels.binomial import binomial_interval
from introspect_ray.labels.checks import problems
from introspect_ray.labels.reading import Reading, load_reading
from introspect_ray.labels.store import LABEL_SCHEMA, LabelCounts, agrees, count_true, labels_from_table, read_tables
from introspect_ray.storage import Store, open_store

TAIL = 1e-5  # probability per side with which the realised agreement of a correct run is reported as wrong
REQUIRED = [column.name for column in LABEL_SCHEMA if not column.nullable]
NAMED = ("rule", "source_model")  # of these "" is missing as well

# The meaning of each violation, by its name in audit.json and in the report.
CHECKS = {
    "no_provenance": "labels with a field of their provenance missing",
    "foreign": "labels of another rule, seed, source, judge or calibration than the run's",
    "split_pair": "labels whose y(x) and y(x∖C) come from different weight versions",
    "wrong_version": "labels of another weight version than the lag asks for",
    "wrong_draw": "labels whose draw is not that of their seed, step and case",
    "wrong_flip": "labels that are flipped although their draw keeps them, or kept although it flips them",
    "agreement": "realised agreement outside the exact interval of the requested one",
    "missing_step": "steps without any label",
    "wrong_count": "steps with another number of labels than batch_size",
    "unknown_step": "steps outside the run",
}


@dataclass
class Audit:
    """What an audit found. `violations` counts by name (see CHECKS); `examples` describes the first of each."""

    labels: int = 0
    steps: int = 0
    finished: bool = False
    flipped: int = 0
    requested: float | None = None
    realised: float | None = None  # share of labels equal to E of their pair, as in summary.json
    draws: int = 0  # ν draws; a case that a step holds twice has one
    interval: tuple[float, float] | None = None  # that the share of agreeing draws must lie in
    violations: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not self.violations

    @property
    def split_pairs(self) -> int:
        return self.violations["split_pair"]

    def add(self, name: str, example: str, count: int = 1) -> None:
        self.violations[name] += count
        self.examples.setdefault(name, example)

    def as_json(self) -> dict[str, Any]:
        """The content of audit.json."""
        found = [
            {"name": name, "count": self.violations[name], "meaning": CHECKS[name], "example": self.examples[name]}
            for name in CHECKS
            if self.violations[name]
        ]
        agreement = {
            "requested": self.requested,
            "realised": self.realised,
            "interval": list(self.interval) if self.interval else None,
            "draws": self.draws,
        }
        return {
            "clean": self.clean,
            "finished": self.finished,
            "labels": self.labels,
            "steps": self.steps,
            "flipped": self.flipped,
            "split_pairs": self.split_pairs,
            "agreement": agreement,
            "violations": found,
        }

    def report(self) -> str:
        """The audit in a few lines to print."""
        lines = [f"labels     {self.labels} in {self.steps} steps{'' if self.finished else ' (run not finished)'}"]
        if self.requested is not None and self.realised is not None and self.interval:
            low, high = self.interval
            lines.append(
                f"agreement  requested {self.requested:g}, realised {self.realised:.4f} ({self.flipped} flipped); "
                f"exact interval {low:.4f} to {high:.4f} of {self.draws} draws"
            )
        lines.append(f"splits     {self.split_pairs} pairs of two weight versions")
        for found in self.as_json()["violations"]:
            lines.append(f"VIOLATION  {found['name']}: {found['count']} {found['meaning']}, e.g. {found['example']}")
        return "\n".join([*lines, "clean" if self.clean else f"{sum(self.violations.values())} violations"])


def load_run(store: Store) -> RunConfig:
    """The config that the run in `store` was started with.

    Raises UserError if `store` holds no run, or a run of a version with other config keys.
    """
    if not store.exists("run.json"):
        raise UserError(f"{store.join()} holds no run.json: give the output_dir of a training run")
    content = store.read_json("run.json")
    if content.get("task", {}).get("path"):  # version 0.1 wrote its default of task.hub_id beside it, which is refused
        content["task"].pop("hub_id", None)
    try:
        return override(RunConfig(), content)
    except UserError as error:
        raise UserError(f"{store.join('run.json')}: {error}") from None


def audit(store: Store) -> Audit:
    """Audit the run in `store`. Raises UserError if there is no run, no label table, or a damaged part of it."""
    cfg = load_run(store)
    if not store.list("labels"):
        trials = " (a sweep: audit one of its trials/)" if store.exists("sweep.json") else ""
        raise UserError(f"{store.join('labels')} holds no label table{trials}: give the output_dir of a training run")
    found = Audit(finished=store.exists("summary.json"))
    per_step = np.zeros(cfg.steps, np.int64)
    beyond: Counter[int] = Counter()
    draws, counts, reading = AgreementCounts(), LabelCounts(), load_reading(store)
    for table in read_tables(store.join("labels")):
        found.labels += len(table)
        if "step" in table.column_names:
            steps = table["step"].drop_null().to_numpy()
            inside = (steps >= 0) & (steps < cfg.steps)
            np.add.at(per_step, steps[inside], 1)
            beyond.update(steps[~inside].tolist())
        table = _complete(table, found)
        found.flipped += count_true(table["flipped"])
        _check(table, cfg, reading, found)
        draws.add_rows(_sampled_rows(table))
        counts.add(table)
    _check_steps(per_step, beyond, cfg, found)
    if cfg.supervision.rule == "online" and counts.sampled:
        found.requested, found.realised, found.draws = cfg.supervision.agreement, counts.agreement, draws.total
        low, high = found.interval = binomial_interval(found.requested, draws.total, TAIL)
        share = draws.agreeing / draws.total
        if not low <= share <= high:
            found.add("agreement", f"{draws.agreeing} of {draws.total} draws ({share:.4f}) agree")
    return found


def _sampled_rows(table: pa.Table) -> Iterator[tuple[int, str, bool]]:
    """The labels with a sampled pair, as AgreementCounts takes them. The writer keeps a step within one part."""
    table = table.filter(table["current_content"].is_valid())
    return zip(*(column.to_pylist() for column in (table["step"], table["case_id"], agrees(table))), strict=True)


def _complete(table: pa.Table, found: Audit) -> pa.Table:
    """The labels of a part that have all required fields. The others are counted as violations."""
    absent = [name for name in LABEL_SCHEMA.names if name not in table.column_names]
    if absent:
        if len(table):
            found.add("no_provenance", f"no column {absent[0]!r}", len(table))
        return LABEL_SCHEMA.empty_table()
    complete = np.ones(len(table), bool)
    for name in REQUIRED:
        complete &= table[name].is_valid().to_numpy()
    for name in NAMED:
        complete &= pc.not_equal(table[name], "").fill_null(False).to_numpy()
    if not complete.all():
        first = table.slice(int(complete.argmin()), 1).to_pylist()[0]
        empty = [name for name in REQUIRED if first[name] is None or (first[name] == "" and name in NAMED)]
        example = f"case {first['case_id']!r} of step {first['step']}: no {', '.join(empty)}"
        found.add("no_provenance", example, int((~complete).sum()))
        table = table.filter(pa.array(complete))
    return table


def _check(table: pa.Table, cfg: RunConfig, reading: Reading, found: Audit) -> None:
    """Check the labels of a part against `cfg`. A label counts once per name, with the first problem of that name."""
    counted = dict.fromkeys(CHECKS, np.zeros(len(table), bool))
    for problem in problems(table, cfg, reading):
        rows = problem.rows & ~counted[problem.name]
        counted[problem.name] = counted[problem.name] | rows
        if rows.any():
            row = int(rows.argmax())
            label = labels_from_table(table.slice(row, 1))[0]
            where = f"case {label.case_id!r} of step {label.provenance.step}"
            found.add(problem.name, f"{where}: {problem.describe(label, row)}", int(rows.sum()))


def _check_steps(per_step: np.ndarray, beyond: Counter[int], cfg: RunConfig, found: Audit) -> None:
    """Every step of the run must have batch_size labels; in an unfinished run, every step up to the last recorded one.

    per_step: labels per step of the run [steps]. beyond: labels of each other step.
    """
    recorded = np.flatnonzero(per_step)
    found.steps = len(recorded) + len(beyond)
    last = max(int(recorded[-1]) if len(recorded) else -1, max(beyond, default=-1))
    end = cfg.steps if found.finished else min(cfg.steps, last + 1)
    for step in np.flatnonzero(per_step[:end] != cfg.batch_size).tolist():
        if not per_step[step]:
            found.add("missing_step", f"step {step}")
        else:
            found.add("wrong_count", f"step {step}: {per_step[step]} labels, batch_size={cfg.batch_size}")
    for step in sorted(beyond):
        found.add("unknown_step", f"step {step} of a run of {cfg.steps}")


def audit_job(args: Arguments) -> bool:
    """Audit output_dir, write <output_dir>/audit.json and print the report. Returns whether the table is clean.

    Raises UserError for other arguments, and as `audit`.
    """
    if set(args.overrides) != {"output_dir"} or args.config or args.resume or args.overwrite or args.dry_run:
        raise UserError("an audit takes one argument, the run's folder: output_dir=runs/x")
    store = open_store(str(args.overrides["output_dir"]))
    found = audit(store)
    store.write_json("audit.json", found.as_json())
    print(f"{found.report()}\nwritten    {store.join('audit.json')}")
    return found.clean
