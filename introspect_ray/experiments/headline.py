"""Figures 2, 12, 13 and 14: with the behavioural regulariser explanations follow the current policy (paper §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from introspect_ray.experiments import plots
from introspect_ray.experiments.measure import (
    PARTS,
    SCORES,
    bar,
    by_point,
    contrast,
    finished,
    gap_of,
    gap_over_worlds,
    mean,
    row,
    score,
    score_gap,
    stopped,
)
from introspect_ray.experiments.protocol import Experiment, Outcome, Run, Runs, Study
from introspect_ray.experiments.settings import Settings

REG, UNREG = {"kl_weight": 1.0}, {"kl_weight": 0.0}
POINTS = (REG, UNREG)


def headline_studies(settings: Settings) -> list[Study]:
    """The runs that the headline claims are about, kind by kind and world by world."""
    seeds = settings.seeds["headline"]
    return [
        Study(f"{kind}-w{organism.world}", organism, {}, POINTS, seeds)
        for kind in settings.headline_kinds
        for organism in settings.headline(kind)
    ]


def _fig2_studies(settings: Settings) -> list[Study]:
    return [*headline_studies(settings), *(_task(settings, kind) for kind in ("verdict", "refusal"))]


def _task(settings: Settings, kind: str) -> Study:
    return Study(kind, settings.single(kind), {}, POINTS, settings.seeds["figures"])


def _fig2(runs: Runs) -> Outcome:
    """Rows per kind and world, and over the worlds of a kind."""
    kinds: dict[str, list[Run]] = {}
    rows: list[dict[str, Any]] = []
    for name, members in runs.items():
        kinds.setdefault(name.partition("-")[0], []).extend(members)
        for group in by_point(members):
            rows.append(row(group, kind=name, kl_weight=group[0].point["kl_weight"]))
    measured: dict[str, Any] = {}
    for kind, members in kinds.items():
        measured |= _coupling(f"fig2-{kind}", members)
    notes = stopped([run for members in runs.values() for run in members])
    return Outcome(rows, lambda path: _draw_headline(path, kinds), measured, notes)


def _coupling(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """The gap with and without the regulariser, its parts, and Self's level, by claim id."""
    found: dict[str, Any] = {}
    with_it, without = (_with(runs, weight) for weight in (1.0, 0.0))
    for which, members in (("reg", with_it), ("unreg", without)):
        if members:
            found |= {f"{name}-{which}-{short}": gap_over_worlds(members, part) for part, short in PARTS.items()}
            found[f"{name}-{which}-size"] = found[f"{name}-{which}-em"]
            found[f"{name}-{which}-self"] = score(members, "explanation", "self", "em")
            found[f"{name}-{which}-resolved"] = score(members, "disagreement", "self")
    if with_it and without:
        found[f"{name}-reg-over-unreg"] = contrast(with_it, without, gap_of())
        found[f"{name}-reg-over-unreg-changed"] = contrast(with_it, without, gap_of("changed_accuracy"))
    return found


def _with(runs: Sequence[Run], weight: float) -> list[Run]:
    return [run for run in finished(runs) if run.point["kl_weight"] == weight]


def _draw_headline(path: Path, kinds: dict[str, list[Run]]) -> None:
    names = [f"{kind}\nλ = {weight:g}" for kind in kinds for weight in (1.0, 0.0)]
    groups = [_with(members, weight) for members in kinds.values() for weight in (1.0, 0.0)]

    def draw(axes: Sequence[Any]) -> None:
        levels = {who.title(): ([mean(group, "explanation", who, "em") for group in groups], plots.COLOURS[who])
                  for who in ("self", "orig")}  # fmt: skip
        plots.bars(axes[0], names, levels, "Explanation EM")
        there = [(name, group) for name, group in zip(names, groups, strict=True) if group]
        intervals = {short: [bar(gap_over_worlds(group, part)) for _, group in there] for part, short in PARTS.items()}
        plots.gaps(axes[1], [name for name, _ in there], intervals)
        shares = {f"to {who.title()}": ([mean(group, "disagreement", who) for group in groups], plots.COLOURS[who])
                  for who in ("self", "orig")}  # fmt: skip
        plots.bars(axes[2], names, shares, "where E(M) is not E(M0): explained as")

    plots.figure(path, 3, draw, (5.2 * 3, 4.2))


def _detail(number: str, kind: str) -> Experiment:
    """Figures 12 and 13: all metrics of one task."""

    def analyse(runs: Runs) -> Outcome:
        members = runs[kind]
        rows = [row(group, kl_weight=group[0].point["kl_weight"]) for group in by_point(members)]
        measured = {f"fig{number}-{name}": score_gap(_with(members, 1.0), name) for name in SCORES}
        return Outcome(rows, lambda path: _draw_detail(path, members), measured, stopped(members))

    title = {"verdict": "Verdicts (AITA) in detail", "refusal": "Refusals in detail"}[kind]
    published = "Self > Orig on all four metrics: exact match, content, changed F1, unchanged F1."
    return Experiment(f"fig{number}", title, published, lambda settings: [_task(settings, kind)], analyse)


def _draw_detail(path: Path, runs: Sequence[Run]) -> None:
    def draw(axes: Sequence[Any]) -> None:
        for axis, weight in zip(axes, (1.0, 0.0), strict=True):
            group = _with(runs, weight)
            levels = {who.title(): ([mean(group, "explanation", who, name) for name in SCORES], plots.COLOURS[who])
                      for who in ("self", "orig")}  # fmt: skip
            names = ["exact match", "content", "changed F1", "unchanged F1"]
            plots.bars(axis, names, levels, f"explanations, λ = {weight:g}")

    plots.figure(path, 2, draw, (11, 3.8))


def _fig14_studies(settings: Settings) -> list[Study]:
    organisms = {family: settings.single("hint", family) for family in settings.families}
    return [Study(family, organism, {}, POINTS, settings.seeds["sweeps"]) for family, organism in organisms.items()]


def _fig14(runs: Runs) -> Outcome:
    rows = [row(group, family=family, kl_weight=group[0].point["kl_weight"])
            for family, members in runs.items() for group in by_point(members)]  # fmt: skip
    measured: dict[str, Any] = {}
    for family, members in runs.items():
        measured |= _coupling(f"fig14-{family}", members)
    notes = stopped([run for members in runs.values() for run in members])
    return Outcome(
        rows, lambda path: _draw_headline(path, {name: list(of) for name, of in runs.items()}), measured, notes
    )


EXPERIMENTS = (
    Experiment(
        "fig2",
        "Explanations follow the current policy, not the labels",
        "Self > Orig with λ = 1 on all three tasks; Self < Orig with λ = 0; of the disagreements 79 / 82 / 63 % are "
        "resolved to Self.",
        _fig2_studies,
        _fig2,
    ),
    _detail("12", "verdict"),
    _detail("13", "refusal"),
    Experiment("fig14", "Other families of policies", "Self > Orig for other families too.", _fig14_studies, _fig14),
)
