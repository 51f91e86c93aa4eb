"""Controls: do Self and Orig differ because the explanations know this model, or for a cheaper reason? Pure.

`controls_of` takes finished runs on the same cases and returns numbers with intervals, each a row. MEANING says of
every control what it would show if the gap were an artefact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from introspect_ray.experiments.controls_cases import (
    Coded,
    Subject,
    behavior_em,
    by_training,
    check_same_cases,
    coded,
)
from introspect_ray.experiments.controls_estimate import Bootstrap
from introspect_ray.experiments.controls_labels import constant_scores, constants, refitted, shuffled
from introspect_ray.experiments.controls_siblings import (
    Numbers,
    drift_swap,
    nearest,
    same_distance,
    second_generation,
    sibling_scores,
)
from introspect_ray.scores.metrics import PARTS
from introspect_ray.scores.statistics import Estimate

GAP, SIBLINGS, SWAP, DISTANCE = "gap", "siblings", "drift swap", "same distance"
SHUFFLED, CONSTANT, REFIT, SECOND = "shuffled labels", "constant explainer", "refitted offsets", "second generation"
MEANING = {
    GAP: "Explanations against what is true of the run itself (Self) and of M0 (Orig).",
    SIBLINGS: "If the gap were what this training does to any run, A's explanations would be as true of its siblings "
    "(runs that differ in their seed) as of A itself, and Self - sibling would be 0.",
    SWAP: "If explanations followed a drift that all runs share, A would state a sibling's new behaviour, where only "
    "the sibling left M0, as often as its own, where only A left M0.",
    DISTANCE: "If Self exceeded Orig only because labels of a policy at some distance from M0 are easier to hit, "
    "another policy at the same distance (Behaviour EM to M0) would be explained as well as A itself.",
    SHUFFLED: "If the gap came from frequencies alone (the run answers one way more often, and says so more often), it "
    "would be as large with labels shuffled over the cases, and the gap beyond marginals would be 0.",
    CONSTANT: "If the gap needed no knowledge of a case, always saying the same would have a gap as large.",
    REFIT: "If the gap came from answers that drift under offsets fixed at M0's, it would vanish when the run is read "
    "by its own mean logprobs (of x and of x∖C, taken from the other half of the questions).",
    SECOND: "If M_reg's behaviour were merely easier to explain than M0's, a run trained from M0 on M_reg's behaviour "
    "and explanations would explain M_reg as well as M_reg explains itself.",
}


@dataclass(frozen=True)
class Row:
    """One number: which training, control and quantity, of which part of an explanation. note: what it is about."""

    training: str
    control: str
    quantity: str
    part: str
    estimate: Estimate
    note: str = ""

    @property
    def flat(self) -> dict[str, Any]:
        """The row for JSON and Parquet; null where no case counts."""
        numbers = {name: None if math.isnan(x) else x for name, x in zip(("value", "low", "high"), self.estimate[:3])}
        about = {name: getattr(self, name) for name in ("training", "control", "quantity", "part")}
        rest = {"runs": self.estimate.runs, "questions": self.estimate.questions, "note": self.note}
        return about | numbers | rest | {"interval": self.estimate.method}


@dataclass(frozen=True)
class Controls:
    """rows: all numbers. missing: a line for each control that these runs cannot give, and why."""

    rows: Sequence[Row]
    missing: Sequence[str]

    def number(self, training: str, control: str, quantity: str, part: str = "em") -> Estimate:
        """One number. Raises KeyError if there is no such row, which `missing` may explain."""
        wanted = (training, control, quantity, part)
        for row in self.rows:
            if (row.training, row.control, row.quantity, row.part) == wanted:
                return row.estimate
        raise KeyError(wanted)


def controls_of(subjects: Sequence[Subject]) -> Controls:
    """All controls of the runs, by training. Raises UserError for runs of other cases, or of one training and seed."""
    check_same_cases(subjects)
    numbers = {id(subject): row for row, subject in enumerate(subjects)}
    groups = {name: [numbers[id(one)] for one in group] for name, group in by_training(subjects).items()}
    distances = [[behavior_em(other, subject) for other in subjects] for subject in subjects]
    given = _Given(subjects, groups, distances)
    refits = [refitted(subject) if subject.calibrated else None for subject in subjects]
    again = [refit or subject for refit, subject in zip(refits, subjects, strict=True)]
    both = [
        one if refit is None else refitted(one, m0_too=True) or one for one, refit in zip(subjects, refits, strict=True)
    ]
    rows: list[Row] = []
    for part in PARTS:
        every = coded(subjects, part)
        anew, anew_both = (coded(again, part), coded(both, part)) if any(refits) else (every, every)
        draws = Bootstrap(every.question_N)
        for training, runs in groups.items():
            found = [*_of_group(given, every, runs, draws)]
            if all(refits[run] is not None for run in runs):
                found += _refit(anew.at(runs), anew_both.at(runs), draws)
            rows += [Row(training, control, name, part, number, note) for control, name, number, note in found]
    return Controls(rows, list(_missing(subjects, groups, refits)))


@dataclass(frozen=True)
class _Given:
    """The runs; groups: the rows of each training; distances[a][b]: Behaviour EM of run b to the M0 of run a."""

    subjects: Sequence[Subject]
    groups: Mapping[str, list[int]]
    distances: Sequence[Sequence[float]]


Found = tuple[str, str, Estimate, str]  # control, quantity, number, note


def _of_group(given: _Given, every: Coded, runs: Sequence[int], draws: Bootstrap) -> Iterator[Found]:
    group = every.at(runs)
    for name, number in sibling_scores(group, draws).items():
        yield SIBLINGS if "sibling" in name else GAP, name, number, ""
    if len(runs) > 1:
        swapped, count = drift_swap(group, draws)
        for name, number in swapped.items():
            yield SWAP, name, number, f"shares of {count} cases, summed over ordered pairs of runs"
    yield from _distances(given, every, runs, range(len(given.subjects)), draws, "B nearest")
    others = [run for members in given.groups.values() if members != list(runs) for run in members]
    if others and len(runs) > 1:  # the nearest run is often a sibling: also one of another training
        yield from _distances(given, every, runs, others, draws, "B nearest of another training")
    yield from _frequencies(group, draws)
    teachers = [_teacher(given.subjects, run) for run in runs]
    known = [(run, teacher) for run, teacher in zip(runs, teachers, strict=True) if teacher is not None]
    if known:
        pupils, taught_by = (every.at(list(column)) for column in zip(*known, strict=True))
        yield from _named(SECOND, second_generation(pupils, taught_by, draws))


def _frequencies(group: Coded, draws: Bootstrap) -> Iterator[Found]:
    yield from _named(SHUFFLED, shuffled(group, draws))
    if group.stratum_N.any():
        note = f"within {int(group.stratum_N.max()) + 1} cues"
        for name, number in shuffled(group, draws, within_cue=True).items():
            yield SHUFFLED, f"{name}, within a cue", number, note
    for which, constant_R in constants(group).items():
        for name, number in constant_scores(group, constant_R, draws).items():
            yield CONSTANT, f"{which}: {name}", number, ""


def _refit(group: Coded, both: Coded, draws: Bootstrap) -> Iterator[Found]:
    """group: the run read anew, M0 as its labels were made; both: M0 read anew too."""
    scores = sibling_scores(group, draws)
    yield from _named(REFIT, {name: scores[name] for name in ("self", "orig", "self - orig")})
    for _, name, number, note in _frequencies(group, draws):
        if "beyond" in name or "gap" in name.split(": ")[-1:][0]:
            yield REFIT, name, number, note
    for name, number in (sibling_scores(both, draws) | shuffled(both, draws)).items():
        if name in ("orig", "self - orig", "gap beyond marginals"):
            yield REFIT, f"{name}, M0 refitted too", number, ""


def _named(control: str, numbers: Numbers) -> Iterator[Found]:
    return ((control, name, number, "") for name, number in numbers.items())


def _distances(
    given: _Given, every: Coded, runs: Sequence[int], allowed: Sequence[int], draws: Bootstrap, which: str
) -> Iterator[Found]:
    """Each run beside the nearest of the allowed ones."""
    pairs = [(a, b) for a in runs if (b := nearest(given.distances[a], a, allowed)) is not None]
    if not pairs:
        return
    ours, others = ([a for a, _ in pairs], [b for _, b in pairs])
    names = [one.name for one in given.subjects]
    note = "; ".join(
        f"A {names[a]} {given.distances[a][a]:.1%}, B {names[b]} {given.distances[a][b]:.1%}" for a, b in pairs
    )
    for name, number in same_distance(every.at(ours), every.own_RN[np.array(others)], draws).items():
        yield DISTANCE, f"{name}, {which}", number, f"Behaviour EM to M0: {note}"


def _teacher(subjects: Sequence[Subject], run: int) -> int | None:
    """The run whose policy is the reference of this one."""
    reference = subjects[run].reference
    found = (row for row, subject in enumerate(subjects) if reference is not None and subject.policy == reference)
    return next(found, None)


def _missing(
    subjects: Sequence[Subject], groups: Mapping[str, list[int]], refits: Sequence[Subject | None]
) -> Iterator[str]:
    for training, runs in groups.items():
        if len(runs) == 1:
            yield f"{training}: siblings and drift swap need a second run with another seed"
        if len(subjects) == 1:
            yield f"{training}: the same distance needs another run"
        for run in runs:
            name, reference = subjects[run].name, subjects[run].reference
            if subjects[run].calibrated and refits[run] is None:
                yield f"{name}: too few cases of one label set in a half of the questions to refit its offsets"
            if reference is not None and _teacher(subjects, run) is None:
                yield f"{name}: second generation needs the run that trained {reference} among the runs given"
            if not subjects[run].cues:
                yield f"{name}: its task could not be read again, so cues are unknown and not told apart"
