"""The controls as text for people and as JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from introspect_ray.experiments.controls import MEANING, Controls, Row
from introspect_ray.experiments.controls_cases import Subject, behavior_em, by_training, coded
from introspect_ray.experiments.controls_labels import answer_shares, refitted
from introspect_ray.experiments.controls_siblings import matrix
from introspect_ray.scores.evaluated_cases import POLICY
from introspect_ray.scores.metrics import PARTS
from introspect_ray.scores.statistics import Estimate

HEADS = {"em": "EM", "content": "content", "changed_accuracy": "changed?"}
NAME_WIDTH, NUMBER_WIDTH, WIDTH = 52, 23, 120


def as_json(subjects: Sequence[Subject], controls: Controls) -> dict[str, Any]:
    """controls.json: "runs", "meaning" of each control, "rows" (flat), "matrix" (A→B by training and part), "answers"
    of calibrated runs (shares on x and x∖C of M0, of the run, and of the run with its own offsets) and "missing"."""
    groups = by_training(subjects)
    return {
        "runs": [
            {
                "name": one.name,
                "training": one.training,
                "seed": one.seed,
                "policy": one.policy,
                "reference": one.reference,
                "behavior_em": behavior_em(one),
                "cases": len(one.cases),
            }
            for one in subjects
        ],
        "meaning": MEANING,
        "rows": [row.flat for row in controls.rows],
        "matrix": {name: {part: matrix(coded(group, part)) for part in PARTS} for name, group in groups.items()},
        "answers": {one.name: shares for one in subjects if (shares := _answers(one))},
        "missing": list(controls.missing),
    }


def _answers(subject: Subject) -> dict[str, Any]:
    refit = refitted(subject) if subject.calibrated else None
    if refit is None:
        return {}
    return {
        "M0": answer_shares(subject.cases, subject.cases.orig),
        "run": answer_shares(subject.cases, POLICY),
        "run with its own offsets": answer_shares(refit.cases, POLICY),
    }


def text(subjects: Sequence[Subject], controls: Controls) -> str:
    """All numbers in points (hundredths), each with its 95 % interval."""
    lines: list[str] = []
    for training, group in by_training(subjects).items():
        rows = [row for row in controls.rows if row.training == training]
        lines += [*_head(training, group, rows), *_table(rows), ""]
        if len(group) > 1:
            lines += [*_matrix(group), ""]
        for one in group:
            lines += _shares(one)
    lines += [f"not here: {line}" for line in controls.missing]
    return "\n".join(lines).rstrip()


def _head(training: str, group: Sequence[Subject], rows: Sequence[Row]) -> Iterator[str]:
    questions = rows[0].estimate.questions
    near = ", ".join(f"{behavior_em(one):.1%}" for one in group)
    seeds = ", ".join(str(one.seed) for one in group)
    yield f"== {training}: seeds {seeds}; {len(group[0].cases)} cases of {questions} questions; Behaviour EM {near}"
    yield f"   in points, with the {rows[0].estimate.method}"
    yield " " * NAME_WIDTH + "".join(f"{HEADS[part]:>{NUMBER_WIDTH}}" for part in PARTS)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    by_name: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_name.setdefault((row.control, row.quantity), {})[row.part] = row
    last = noted = ""
    for (control, quantity), parts in by_name.items():
        if control != last:
            yield from textwrap.wrap(f"{control.upper()}. {MEANING[control]}", WIDTH)
            last = control
        numbers = "".join(_number(parts[part].estimate, quantity) for part in PARTS)
        note = parts["em"].note
        yield f"  {quantity:<{NAME_WIDTH - 2}}{numbers}"
        if note and note != noted:
            yield from textwrap.wrap(f"({note})", WIDTH, initial_indent="    ", subsequent_indent="    ")
            noted = note


def _number(estimate: Estimate, quantity: str) -> str:
    if math.isnan(estimate.value):
        return f"{'no such case':>{NUMBER_WIDTH}}"
    what = quantity.rsplit(": ", 1)[-1]
    sign = "+" if " - " in what or "gap" in what else ""
    value, low, high = (f"{round(100 * x, 1) + 0.0:{sign}.1f}" for x in estimate[:3])  # + 0.0: no -0.0
    return f"{f'{value} [{low}, {high}]':>{NUMBER_WIDTH}}"


def _matrix(group: Sequence[Subject]) -> Iterator[str]:
    """A→B in exact match."""
    yield "A→B, Explanation EM in %: explanations of the row's run against what is true of the column's"
    yield " " * 24 + "".join(f"{f'seed {one.seed}':>10}" for one in group) + f"{'M0':>10}"
    for one, row in zip(group, matrix(coded(group, "em")), strict=True):
        yield f"{f'  seed {one.seed}':<24}" + "".join(f"{100 * share:>10.1f}" for share in row)


def _shares(subject: Subject) -> Iterator[str]:
    """The marginal drift of a calibrated run."""
    for who, sides in _answers(subject).items():
        shown = "; ".join(
            f"{name} " + " ".join(f"{label} {share:.0%}" for label, share in sorted(sides[side].items()))
            for side, name in (("cued", "x"), ("ablated", "x∖C"))
        )
        yield f"answers of {subject.name}, {who}: {shown}"
