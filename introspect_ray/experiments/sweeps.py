"""Figures 4, 5, 6, 17 and 18: one key swept, on one world; and the joint grid over λ and the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from introspect_ray.experiments import plots
from introspect_ray.experiments.measure import (
    PARTS,
    at,
    bar,
    baselines,
    by_point,
    contrast,
    explained,
    finished,
    gap,
    gap_of,
    mean,
    row,
    same_behavior,
    score,
    stopped,
)
from introspect_ray.experiments.protocol import Experiment, Outcome, Run, Runs, Study
from introspect_ray.experiments.settings import Settings
from introspect_ray.scores.drawing import leaf
from introspect_ray.scores.grid import grid_figure

STUDY = "sweep"
_BEHAVIOR = (
    ("em", "both answers", plots.BEHAVIOR),
    ("cued", "with the cue", plots.TEAL),
    ("ablated", "without it", plots.PURPLE),
)
SOURCES = ("self", "m0", "second", "mixture")  # figure 6: whose explanations a run is scored against


def _sweep(
    name: str,
    key: str,
    values: str,
    about: tuple[str, str],
    base: Mapping[str, Any],
    claims: Callable[[Sequence[Run]], dict[str, Any]],
    part: str | None = None,
) -> Experiment:
    """One figure over a swept key. values: their name in the settings. about: (title, published outcome)."""

    def studies(settings: Settings) -> list[Study]:
        points = tuple({key: value} for value in settings.values[values])
        more = settings.part(part) if part else {}
        return [Study(STUDY, settings.single(), {**base, **more}, points, settings.seeds["sweeps"])]

    def analyse(runs: Runs) -> Outcome:
        members = runs[STUDY]
        rows = [{**row(group, **{leaf(key): group[0].point[key]}), **_sources(group)} for group in by_point(members)]
        return Outcome(rows, lambda path: _draw(path, members, key), claims(members), stopped(members))

    return Experiment(name, about[0], about[1], studies, analyse)


def _sources(group: Sequence[Run]) -> dict[str, Any]:
    """Mixed runs: explanation EM against each source, and behaviour EM to the second policy."""
    if group[0].summary.get("sources") is None:
        return {}
    found: dict[str, Any] = {f"em_to_{name}": mean(group, "sources", name, "em") for name in SOURCES}
    return {**found, "behavior_to_second": mean(group, "sources", "behavior", "second", "em")}


def _draw(path: Path, runs: Sequence[Run], key: str) -> None:
    """(a) behaviour, (b) explanations against each source, (c) the paired gap with its parts."""
    groups = by_point(runs)
    xs = [group[0].point[key] for group in groups]
    mixed = groups[0][0].summary.get("sources") is not None

    def draw(axes: Sequence[Any]) -> None:
        behavior = {f"to M0, {name}": ([mean(group, "behavior", field) for group in groups], colour)
                    for field, name, colour in _BEHAVIOR}  # fmt: skip
        explained = {who.title(): ([mean(group, "explanation", who, "em") for group in groups], plots.COLOURS[who])
                     for who in ("self", "orig")}  # fmt: skip
        if mixed:
            second = [mean(group, "sources", "behavior", "second", "em") for group in groups]
            behavior["to the second policy"] = (second, plots.GREY)
            explained = {name: ([mean(group, "sources", name, "em") for group in groups], plots.COLOURS[name])
                         for name in SOURCES}  # fmt: skip
        plots.curves(axes[0], xs, behavior, "(a) behaviour")
        plots.curves(axes[1], xs, explained, "(b) Explanation EM", baselines(groups[0][0]))
        intervals = {short: [bar(gap(group, part)) for group in groups] for part, short in PARTS.items()}
        plots.gaps(axes[2], [f"{x:g}" for x in xs], intervals, "(c) Self − Orig, paired")
        for axis in axes[:2]:
            axis.set_ylim(0, 100)
        for axis in axes:
            axis.set_xlabel(leaf(key))

    plots.figure(path, 3, draw, (15, 4.2))


# --- what the claims are about ---------------------------------------------------------------------------------------


def _gaps_at(name: str, runs: Sequence[Run], key: str) -> dict[str, Any]:
    """By claim id "NAME-gap-VALUE": the gap in exact match at each value, over seeds x questions."""
    return {f"{name}-gap-{group[0].point[key]:g}": gap(group) for group in by_point(runs)}


def _ends(runs: Sequence[Run], key: str) -> tuple[list[Run], list[Run]]:
    """The runs at the largest and at the smallest value."""
    values = sorted({run.point[key] for run in finished(runs)})
    if not values:
        return [], []
    return [run for run in finished(runs) if run.point[key] == values[-1]], [
        run for run in finished(runs) if run.point[key] == values[0]
    ]


def _of_lambda(runs: Sequence[Run]) -> dict[str, Any]:
    high, low = at(runs, kl_weight=1.0), at(runs, kl_weight=0.0)
    return {
        **_gaps_at("fig4", runs, "kl_weight"),
        "fig4-rises": contrast(high, low, gap_of()),
        "fig4-behavior-rises": contrast(high, low, same_behavior()),
    }


def _of_agreement(runs: Sequence[Run]) -> dict[str, Any]:
    high, low = _ends(runs, "supervision.agreement")
    return {
        **_gaps_at("fig5", runs, "supervision.agreement"),
        "fig5-self-falls": contrast(high, low, explained()),
        "fig5-behavior-flat": contrast(high, low, same_behavior()),
    }


def _of_mixing(runs: Sequence[Run]) -> dict[str, Any]:
    high, low = _ends(runs, "supervision.mixing_ratio")
    return {
        **_gaps_at("fig6", runs, "supervision.mixing_ratio"),
        "fig6-self-falls": contrast(low, high, explained()),
        "fig6-behavior-steady": contrast(high, low, same_behavior()),
        **({"fig6-self-over-second": gap(high, a="self", b="second")} if high else {}),
    }


def _of_rank(runs: Sequence[Run]) -> dict[str, Any]:
    high, low = _ends(runs, "lora_rank")
    return {**_gaps_at("fig17", runs, "lora_rank"), "fig17-widens": contrast(high, low, gap_of())}


def _of_rate(runs: Sequence[Run]) -> dict[str, Any]:
    high, low = _ends(runs, "learning_rate")
    found = {**_gaps_at("fig18", runs, "learning_rate"), "fig18-widens": contrast(high, low, gap_of())}
    return {**found, "fig18-orig-falls": contrast(low, high, explained("orig"))}


# --- the joint grid --------------------------------------------------------------------------------------------------


def _grid_studies(settings: Settings) -> list[Study]:
    points = tuple(
        {"kl_weight": weight, "learning_rate": rate}
        for weight in settings.values["grid_kl_weight"]
        for rate in settings.values["grid_learning_rate"]
    )
    return [Study("grid", settings.single(), {}, points, settings.seeds["grid"])]


def _grid(runs: Runs) -> Outcome:
    members = finished(runs["grid"])
    keys = ("kl_weight", "learning_rate")
    rows = [row(group, **{key: group[0].point[key] for key in keys}) for group in by_point(members)]
    summaries = [{**run.summary, **run.point} for run in members]
    measured = {"grid-self": score(at(members, kl_weight=1.0), "explanation", "self", "em")}
    return Outcome(rows, lambda path: grid_figure(summaries, keys, path), measured, stopped(runs["grid"]))


EXPERIMENTS = (
    _sweep(
        "fig4", "kl_weight", "kl_weight",
        ("How strong the regulariser has to be",
         "The gap appears at λ ≥ 5e-3 and stays; Behavior EM rises at the same place."),
        {}, _of_lambda,
    ),
    _sweep(
        "fig5", "supervision.agreement", "agreement",
        ("Online labels that agree with the current policy for a share ν",
         "Coupling for ν ≥ 0.7; both EMs collapse at ν ≤ 0.6; Behavior EM is flat at about 0.5."),
        {"supervision.rule": "online"}, _of_agreement,
    ),
    _sweep(
        "fig6", "supervision.mixing_ratio", "mixing_ratio",
        ("Labels of a second policy for a share α",
         "Self > Orig at every α; Self falls from 88 to 69 %; Behavior EM is steady at 80 % to M0 and 55 % to the "
         "second policy, whose labels agree with M0's on 53 %."),
        {"supervision.rule": "mixed"}, _of_mixing, part="second_policy",
    ),
    _sweep(
        "fig17", "lora_rank", "lora_rank",
        ("LoRA of rank r = α", "The gap is 0 or below up to rank 80, opens at 96 and widens."),
        {}, _of_rank, part="lora",
    ),
    _sweep(
        "fig18", "learning_rate", "learning_rate",
        ("The learning rate", "No gap at 5e-6; it widens with the learning rate while absolute EM falls."),
        {}, _of_rate,
    ),
    Experiment(
        "grid", "λ and the learning rate together", "Not in the paper: figures 4 and 18 each fix the other key.",
        _grid_studies, _grid,
    ),
)  # fmt: skip
