"""What the controls work on: finished runs as their held-out cases, and the cases of equal runs as arrays. Pure.

Shapes: R runs of one training, N cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from introspect_ray.errors import UserError
from introspect_ray.experiments.controls_estimate import Array
from introspect_ray.records import Explanation
from introspect_ray.scores.evaluated_cases import POLICY, TEST, EvaluatedCases
from introspect_ray.scores.metrics import behavior_scores

_STATED: dict[str, Callable[[Explanation], Hashable]] = {  # by metrics.PARTS: what an explanation states
    "em": lambda one: one,
    "content": lambda one: one.content,
    "changed_accuracy": lambda one: one.changed,
}
UNPARSED = -1
SMALLEST_STRATUM = 20  # cases on average; in smaller strata a shuffle leaves too many cases where they are


@dataclass(frozen=True)
class Subject:
    """A finished run as the controls need it."""

    name: str  # for people
    training: str  # equal for runs that differ in nothing but their seed
    seed: int
    policy: str  # the address of what it trained
    reference: str | None  # the address of the policy whose explanations it was trained on, where that is not M0
    calibrated: bool
    held_out: EvaluatedCases  # dev and test
    cues: Mapping[str, str]  # by case id: the cue as text; a case is missing where it is unknown

    @cached_property
    def cases(self) -> EvaluatedCases:
        """Those that are scored: the test split."""
        return self.held_out.of(TEST)


def behavior_em(subject: Subject, other: Subject | None = None) -> float:
    """The share of cases in which both answers of a run are those of M0 (the M0 of `other`, if given): its distance."""
    start = (other or subject).cases
    return behavior_scores(subject.cases.pairs[POLICY], start.pairs[start.orig])["em"]


@dataclass(frozen=True)
class Coded:
    """One part of the explanations of R runs on the same N cases, as integers: equal ones state the same."""

    said_RN: Array  # what each run says; UNPARSED where it says nothing
    own_RN: Array  # what is true of the run
    orig_RN: Array  # what is true of M0
    question_N: Array  # the question of each case, from 0
    stratum_N: Array  # cases with the same cue and labels, from 0; all 0 where these are too many

    def at(self, runs: Sequence[int]) -> Coded:
        """Some of the runs, in this order."""
        rows = list(runs)
        return replace(self, said_RN=self.said_RN[rows], own_RN=self.own_RN[rows], orig_RN=self.orig_RN[rows])


def coded(subjects: Sequence[Subject], part: str) -> Coded:
    """The arrays of runs on the same cases. part: one of metrics.PARTS."""
    numbers: dict[Hashable, int] = {}
    part_of = _STATED[part]

    def code(explanations: Sequence[Explanation | None]) -> list[int]:
        return [UNPARSED if e is None else numbers.setdefault(part_of(e), len(numbers)) for e in explanations]

    first = subjects[0]
    # M0's labels come first, so that a label's number, which decides between equally frequent ones, is M0's order
    orig = [code(subject.cases.truth(subject.cases.orig)) for subject in subjects]
    own = [code(subject.cases.truth(POLICY)) for subject in subjects]
    said = [code(subject.cases.parsed) for subject in subjects]
    said_RN, own_RN, orig_RN = (np.array(values) for values in (said, own, orig))
    return Coded(said_RN, own_RN, orig_RN, question_N=numbered(first.cases.questions), stratum_N=strata(first))


def strata(subject: Subject) -> Array:
    """Per case the number of its cue, group and labels; all 0 if there are so many that few cases share one."""
    cases = subject.cases
    cues = [subject.cues.get(one, "") for one in cases.case_ids]
    keys = list(zip(cues, cases.groups, map(tuple, cases.labels), strict=True))
    few = len(keys) / len(set(keys)) < SMALLEST_STRATUM
    return np.zeros(len(keys), int) if few else numbered(keys)


def numbered(keys: Sequence[Hashable]) -> Array:
    """The keys as numbers from 0, in the order in which they first appear."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def by_training(subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """Siblings: the runs of each training, in order. Raises UserError where two runs have the same seed too."""
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(subject.training, []).append(subject)
    for group in groups.values():
        seed, count = Counter(subject.seed for subject in group).most_common(1)[0]
        if count > 1:
            names = " and ".join([subject.name for subject in group if subject.seed == seed][:2])
            raise UserError(f"{names} are one training with one seed ({seed}): give each run once")
    return groups


def check_same_cases(subjects: Sequence[Subject]) -> None:
    """Raises UserError unless all runs were evaluated on the same cases in the same order."""
    first = subjects[0]
    for other in subjects[1:]:
        a, b = list(first.cases.case_ids), list(other.cases.case_ids)
        if a != b and list(first.held_out.case_ids) == list(other.held_out.case_ids):
            raise UserError(
                f"{first.name} and {other.name} have the same held-out cases, but {len(a)} and {len(b)} of them are "
                "the test split: give runs with the same eval.dev_fraction (older versions had no dev split)"
            )
        if a != b:
            where = next((row for row, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            raise UserError(
                f"{first.name} and {other.name} were evaluated on other cases: {len(a)} and {len(b)}, the first "
                f"difference is case {where}; give runs of one task with the same held-out cases"
            )
