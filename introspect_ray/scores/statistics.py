"""Intervals of a gap over questions, seeds and worlds, and tests of it over seeds. Pure, and the same at every call.

Cases of one question (equal x∖C) tend to be right or wrong together, and so do all cases of one run. So what is drawn
anew is a whole question, a whole run (seed) and a whole world, never a case. Every level draws n - 1 of its n units
with replacement (Rao and Wu 1988), which gives a mean the variance s²/n; n of n would give (n - 1)/n of it, a third too
little with three seeds. Levels are drawn independently, so that what they share is counted in each: intervals of
several levels err to the wide side while questions make most of the spread. Where a few seeds or worlds make nearly all
of it they are too narrow, since percentiles of few units see no further than these units do: the interval of two units
covers 50 %, that of three 75 % (from the least to the largest), of five about 86 %. So read `paired_t` beside it, over
the values of the seeds or the means of the worlds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from introspect_ray.scores.evaluated_cases import POLICY, TEST, EvaluatedCases
from introspect_ray.scores.metrics import PARTS, over_seeds

DRAWS = 2000
BLOCK = 2_000_000  # numbers that are drawn at once: 16 MB
SELF, ORIG = "self", "orig"
Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number with its interval [low, high]. method: in words, what the interval is and over how much.

    runs, questions: how many went in; 0 questions where only the runs' values did.
    """

    value: float
    low: float
    high: float
    method: str
    runs: int
    questions: int


def right_about(cases: EvaluatedCases, who: str, part: str = "em") -> NDArray[np.int64]:
    """Per case [n]: 1 where the explanation is right about a policy, else 0.

    who: "self" (the evaluated policy), "orig" (M0, or the reference policy), or the name of another policy in
    `cases.pairs`. part: one of metrics.PARTS ("em", "content", "changed_accuracy"). Raises ValueError for a part or a
    policy that there is not.
    """
    if part not in PARTS:
        raise ValueError(f"no part {part!r} of an explanation; there are {', '.join(PARTS)}")
    policy = {SELF: POLICY, ORIG: cases.orig}.get(who, who)
    if policy not in cases.pairs:
        raise ValueError(f"no policy {who!r} in the cases: they have self, orig, {', '.join(sorted(cases.pairs))}")
    return np.array(list(map(PARTS[part], cases.parsed, cases.truth(policy))), np.int64)


def run_differences(
    cases: EvaluatedCases, part: str = "em", a: str = SELF, b: str = ORIG
) -> tuple[NDArray[np.int64], list[str]]:
    """Per case [n]: right by a minus right by b, in {-1, 0, 1}; and the cases' questions [n].

    part; a, b: whose behaviour is the truth: as in `right_about`, which raises ValueError for others. All cases count,
    dev and test alike.
    """
    return right_about(cases, a, part) - right_about(cases, b, part), list(cases.questions)


class World(NamedTuple):
    """A number of each case of runs on the same cases, summed over the cases of a question."""

    sums: Floats  # [runs, questions]
    sizes: Floats  # [questions]: the cases of a question, the same in every run

    @property
    def mean(self) -> float:
        """Over runs and cases."""
        return float(self.sums.sum() / (len(self.sums) * self.sizes.sum()))


def world_of(values: Sequence[NDArray[Any]], questions: Sequence[Sequence[str]]) -> World:
    """values: by run, a number per case [n]; questions: by run, the question of each case [n].

    Raises ValueError for runs of other questions, or with other numbers of cases per question.
    """
    rows = {question: row for row, question in enumerate(dict.fromkeys(questions[0]))}
    sums, sizes = [], []
    for of_run, asked in zip(values, questions, strict=True):
        if not rows.keys() >= set(asked):
            raise ValueError("runs of other questions cannot be drawn together: give each set of cases as a world")
        at = [rows[question] for question in asked]
        sums.append(np.bincount(at, weights=of_run, minlength=len(rows)))
        sizes.append(np.bincount(at, minlength=len(rows)))
    if any((other != sizes[0]).any() for other in sizes):
        raise ValueError("runs with other cases per question cannot be drawn together: evaluate all on the same cases")
    return World(np.stack(sums).astype(np.float64), sizes[0].astype(np.float64))


def bootstrap(worlds: Sequence[World], over: str) -> Estimate:
    """The mean over worlds, of which each counts the same; its interval draws worlds, runs and questions anew.

    over: in words, what is drawn. At least one world; of one world only its runs and questions are drawn.
    """
    rng = np.random.default_rng(0)
    drawn = np.stack([_drawn(world, rng) for world in worlds], axis=1)  # [draws, worlds]
    means = (shares(rng, len(worlds), DRAWS) * drawn).sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    value = math.fsum(world.mean for world in worlds) / len(worlds)
    runs, questions = (sum(world.sums.shape[axis] for world in worlds) for axis in (0, 1))
    return Estimate(value, float(low), float(high), f"95 % bootstrap interval over {over}", runs, questions)


def clustered(
    cases_by_run: Sequence[EvaluatedCases], part: str = "em", a: str = SELF, b: str = ORIG, split: str | None = TEST
) -> Estimate:
    """The mean of `run_differences` over runs that differ in their seed, with a bootstrap over seeds x questions.

    All runs are of the same held-out cases, and each draw takes the same questions for all of them. One run: over its
    questions alone, which says nothing about other seeds. One question gives no interval, so [-1, 1]. split: "test"
    (where there is no dev split, these are all cases), "dev", or None for both. Raises ValueError for no runs or no
    cases, and for runs of other questions.
    """
    world = _differences(cases_by_run, part, a, b, split)
    runs, questions = world.sums.shape
    if questions == 1:
        return Estimate(world.mean, -1.0, 1.0, "no interval: one question alone", runs, questions)
    return bootstrap([world], f"{questions} questions" if runs == 1 else f"{runs} seeds x {questions} questions")


def over_worlds(
    by_world: Mapping[str, Sequence[EvaluatedCases]],
    part: str = "em",
    a: str = SELF,
    b: str = ORIG,
    split: str | None = TEST,
) -> Estimate:
    """The mean over worlds of the mean over their runs, with a bootstrap over worlds, then seeds, then questions.

    by_world: the runs of each world, as `clustered` takes them; other worlds have other questions. Every world counts
    the same. Raises ValueError as `clustered` does, and for no worlds.
    """
    if not by_world:
        raise ValueError("over_worlds of no worlds")
    worlds = [_differences(by_world[name], part, a, b, split) for name in sorted(by_world)]
    runs, questions = (sum(world.sums.shape[axis] for world in worlds) for axis in (0, 1))
    return bootstrap(worlds, f"{len(worlds)} worlds, then their seeds ({runs} runs) x questions ({questions})")


def _differences(cases_by_run: Sequence[EvaluatedCases], part: str, a: str, b: str, split: str | None) -> World:
    runs = [cases if split is None else cases.of(split) for cases in cases_by_run]
    if not runs or not all(len(cases) for cases in runs):
        which = "" if split is None else f" of the {split} split"
        raise ValueError(f"a clustered interval needs runs with cases{which}; got {[len(cases) for cases in runs]}")
    return world_of([run_differences(cases, part, a, b)[0] for cases in runs], [cases.questions for cases in runs])


def _drawn(world: World, rng: np.random.Generator) -> Floats:
    """Means of one world [draws], with its questions and its runs drawn anew."""
    runs, questions = world.sums.shape
    block = max(1, BLOCK // questions)
    parts = (shares(rng, questions, min(block, DRAWS - done)) for done in range(0, DRAWS, block))
    by_run = np.concatenate([(part @ world.sums.T) / (part @ world.sizes)[:, None] for part in parts])  # [draws, runs]
    means: Floats = (shares(rng, runs, DRAWS) * by_run).sum(axis=1)
    return means


def shares(rng: np.random.Generator, units: int, draws: int) -> Floats:
    """The share of each unit [draws, units] in n - 1 draws of n units with replacement; one unit is always itself."""
    times = max(1, units - 1)
    drawn = rng.integers(units, size=(draws, times)) + units * np.arange(draws)[:, None]
    found: Floats = np.bincount(drawn.ravel(), minlength=draws * units).reshape(draws, units) / times
    return found


def paired_t(values: Sequence[float]) -> Estimate:
    """The mean over seeds with its 95 % t interval. values: per seed a difference (Self - Orig), which pairs the two.

    It is about other seeds on the same questions: as all seeds share these, it says nothing about other ones. Raises
    ValueError for fewer than two seeds, which have no spread.
    """
    return _t_interval(values, 0.95)


def equivalent(values: Sequence[float], margin: float) -> Estimate:
    """Two one-sided t tests (TOST, Schuirmann 1987) that a difference over seeds is 0 but for `margin`, at 5 %.

    The interval is the 90 % t interval; "no gap" is shown if it lies inside ±margin (`inside`), and `method` says
    whether it does. Raises ValueError for fewer than two seeds, or a margin of 0 or less.
    """
    if margin <= 0:
        raise ValueError(f"an equivalence test needs a margin above 0; got {margin}")
    found = _t_interval(values, 0.90)
    verdict = "no gap" if inside(found, margin) else "a gap is not ruled out"
    return found._replace(method=f"{found.method} against ±{margin:g} (TOST at 5 %): {verdict}")


def inside(estimate: Estimate, margin: float) -> bool:
    """Whether the interval lies inside ±margin: what `equivalent` tests."""
    return -margin < estimate.low and estimate.high < margin


def _t_interval(values: Sequence[float], coverage: float) -> Estimate:
    mean, _, low, high = over_seeds(values, coverage)
    if low is None or high is None:
        raise ValueError(f"an interval over seeds needs at least two; got {len(values)}")
    return Estimate(mean, low, high, f"{100 * coverage:.0f} % t interval over {len(values)} seeds", len(values), 0)
