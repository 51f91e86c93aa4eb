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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from introspect_ray.scores.evaluated_cases import POLICY, TEST, EvaluatedCases
from introspect_ray.scores.metrics import PARTS
from introspect_ray.scores.student_t import t_quantile

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


def run_differences(
    cases: EvaluatedCases, part: str = "em", a: str = SELF, b: str = ORIG
) -> tuple[NDArray[np.int64], list[str]]:
    """Per case [n]: right by a minus right by b, in {-1, 0, 1}; and the cases' questions [n].

    part: one of metrics.PARTS ("em", "content", "changed_accuracy"). a, b: whose behaviour is the truth: "self" (the
    evaluated policy), "orig" (M0, or the reference policy), or the name of another policy in `cases.pairs`. All cases
    count, dev and test alike. Raises ValueError for a part or a policy that there is not.
    """
    if part not in PARTS:
        raise ValueError(f"no part {part!r} of an explanation; there are {', '.join(PARTS)}")
    right = PARTS[part]
    truths = [cases.truth(_policy(cases, name)) for name in (a, b)]
    hits = [[right(said, truth) for said, truth in zip(cases.parsed, each, strict=True)] for each in truths]
    return np.array(hits[0], np.int64) - np.array(hits[1], np.int64), list(cases.questions)


def _policy(cases: EvaluatedCases, name: str) -> str:
    policy = {SELF: POLICY, ORIG: cases.orig}.get(name, name)
    if policy not in cases.pairs:
        raise ValueError(f"no policy {name!r} in the cases: they have self, orig, {', '.join(sorted(cases.pairs))}")
    return policy


def clustered(
    cases_by_run: Sequence[EvaluatedCases], part: str = "em", a: str = SELF, b: str = ORIG, split: str | None = TEST
) -> Estimate:
    """The mean of `run_differences` over runs that differ in their seed, with a bootstrap over seeds x questions.

    All runs are of the same held-out cases, and each draw takes the same questions for all of them. One run: over its
    questions alone, which says nothing about other seeds. One question gives no interval, so [-1, 1]. split: "test"
    (where there is no dev split, these are all cases), "dev", or None for both. Raises ValueError for no runs or no
    cases, and for runs of other questions.
    """
    world = _world(cases_by_run, part, a, b, split)
    runs, questions = world.sums.shape
    if questions == 1:
        return Estimate(world.mean, -1.0, 1.0, "no interval: one question alone", runs, questions)
    over = f"{questions} questions" if runs == 1 else f"{runs} seeds x {questions} questions"
    return _estimate(world.mean, _drawn(world, np.random.default_rng(0)), over, runs, questions)


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
    rng = np.random.default_rng(0)
    worlds = [_world(by_world[name], part, a, b, split) for name in sorted(by_world)]
    drawn = np.stack([_drawn(world, rng) for world in worlds], axis=1)  # [draws, worlds]
    weights = _weights(rng, len(worlds), DRAWS)
    runs, questions = sum(len(w.sums) for w in worlds), sum(w.sums.shape[1] for w in worlds)
    over = f"{len(worlds)} worlds, then their seeds ({runs} runs) x questions ({questions})"
    value = math.fsum(world.mean for world in worlds) / len(worlds)
    return _estimate(value, (weights * drawn).sum(axis=1), over, runs, questions)


class _World(NamedTuple):
    sums: Floats  # [runs, questions]: differences summed over the cases of a question
    sizes: Floats  # [questions]: the cases of a question, the same in every run
    mean: float


def _world(cases_by_run: Sequence[EvaluatedCases], part: str, a: str, b: str, split: str | None) -> _World:
    runs = [cases if split is None else cases.of(split) for cases in cases_by_run]
    if not runs or not all(len(cases) for cases in runs):
        which = "" if split is None else f" of the {split} split"
        raise ValueError(f"a clustered interval needs runs with cases{which}; got {[len(cases) for cases in runs]}")
    rows = {question: row for row, question in enumerate(dict.fromkeys(runs[0].questions))}
    sums, sizes = [], []
    for cases in runs:
        differences, questions = run_differences(cases, part, a, b)
        if not rows.keys() >= set(questions):
            raise ValueError("runs of other questions cannot be drawn together: give each set of cases as a world")
        at = [rows[question] for question in questions]
        sums.append(np.bincount(at, weights=differences, minlength=len(rows)))
        sizes.append(np.bincount(at, minlength=len(rows)))
    if any((other != sizes[0]).any() for other in sizes):
        raise ValueError("runs with other cases per question cannot be drawn together: evaluate all on the same cases")
    all_sums: Floats = np.stack(sums).astype(np.float64)
    return _World(all_sums, sizes[0].astype(np.float64), float(all_sums.sum() / (len(runs) * sizes[0].sum())))


def _drawn(world: _World, rng: np.random.Generator) -> Floats:
    """Means of one world [draws], with its questions and its runs drawn anew."""
    runs, questions = world.sums.shape
    block = max(1, BLOCK // questions)
    parts = (_weights(rng, questions, min(block, DRAWS - done)) for done in range(0, DRAWS, block))
    by_run = np.concatenate([(part @ world.sums.T) / (part @ world.sizes)[:, None] for part in parts])  # [draws, runs]
    means: Floats = (_weights(rng, runs, DRAWS) * by_run).sum(axis=1)
    return means


def _weights(rng: np.random.Generator, units: int, draws: int) -> Floats:
    """Shares [draws, units] of n - 1 draws of n units with replacement; one unit is always itself."""
    times = max(1, units - 1)
    drawn = rng.integers(units, size=(draws, times)) + units * np.arange(draws)[:, None]
    shares: Floats = np.bincount(drawn.ravel(), minlength=draws * units).reshape(draws, units) / times
    return shares


def _estimate(value: float, drawn: Floats, over: str, runs: int, questions: int) -> Estimate:
    low, high = np.quantile(drawn, (0.025, 0.975))
    method = f"95 % bootstrap interval over {over}"
    return Estimate(value, float(low), float(high), method, runs, questions)


def paired_t(values: Sequence[float]) -> Estimate:
    """The mean over seeds with its 95 % t interval. values: per seed a difference (Self - Orig), which pairs the two.

    It is about other seeds on the same questions: as all seeds share these, it says nothing about other ones. Raises
    ValueError for fewer than two seeds, which have no spread.
    """
    mean, half = _t_interval(values, 0.95)
    return Estimate(mean, mean - half, mean + half, f"95 % t interval over {len(values)} seeds", len(values), 0)


def equivalent(values: Sequence[float], margin: float) -> Estimate:
    """Two one-sided t tests (TOST, Schuirmann 1987) that a difference over seeds is 0 but for `margin`, at 5 %.

    The interval is the 90 % t interval; "no gap" is shown if it lies inside ±margin (`inside`), and `method` says
    whether it does. Raises ValueError for fewer than two seeds, or a margin of 0 or less.
    """
    if margin <= 0:
        raise ValueError(f"an equivalence test needs a margin above 0; got {margin}")
    mean, half = _t_interval(values, 0.90)
    within = mean - half > -margin and mean + half < margin
    verdict = "no gap" if within else "a gap is not ruled out"
    method = f"90 % t interval over {len(values)} seeds against ±{margin:g} (TOST at 5 %): {verdict}"
    return Estimate(mean, mean - half, mean + half, method, len(values), 0)


def inside(estimate: Estimate, margin: float) -> bool:
    """Whether the interval lies inside ±margin: what `equivalent` tests."""
    return -margin < estimate.low and estimate.high < margin


def _t_interval(values: Sequence[float], coverage: float) -> tuple[float, float]:
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval over seeds needs at least two; got {n}")
    mean = math.fsum(values) / n
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, t_quantile(coverage, n - 1) * sd / math.sqrt(n)
