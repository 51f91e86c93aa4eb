"""Figures 3, 15 and 16: activation patching of M_reg, M_unreg and M0 (paper §3.3), from finished runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from introspect_ray.experiments.headline import POINTS
from introspect_ray.experiments.measure import at, stopped
from introspect_ray.experiments.protocol import Experiment, Outcome, Run, Runs, Study
from introspect_ray.experiments.settings import Settings
from introspect_ray.scores.evaluated_cases import M0, POLICY
from introspect_ray.scores.statistics import Estimate

if TYPE_CHECKING:
    from introspect_ray.patching.pairs import Side

STUDY = "patched"


def _studies(settings: Settings) -> list[Study]:
    return [Study(STUDY, settings.single(), {}, POINTS, settings.seeds["sweeps"][:1])]


def _patched(runs: Runs) -> dict[str, Mapping[str, Any]]:
    """By policy, what patching it gives; kept in the run's folder, so that three figures patch once."""
    reg, unreg = (next(iter(at(runs[STUDY], kl_weight=weight)), None) for weight in (1.0, 0.0))
    wanted = (("M_reg", reg, POLICY), ("M_unreg", unreg, POLICY), ("M0", reg, M0))
    return {name: _patch(run, who) for name, run, who in wanted if run is not None}


def _patch(run: Run, who: str) -> Any:
    from introspect_ray.experiments.patching_figure import patch_run

    return run.cached("patching", {"who": who, "limit": 128}, lambda: patch_run(run.folder, who))


def _figure(name: str, side: Side, about: tuple[str, str], parts: Mapping[str, str]) -> Experiment:
    """parts: by the suffix of a claim id, which correlation it is about."""

    def analyse(runs: Runs) -> Outcome:
        from introspect_ray.experiments.patching_figure import draw_patching

        results = _patched(runs)
        rows: list[dict[str, Any]] = []
        measured: dict[str, Estimate] = {}
        for who, result in results.items():
            for averaging in ("correlations", "weighted"):
                for part, found in result[side][averaging].items():
                    rows.append({"policy": who, "averaging": averaging, "direction": part, **found})
            for suffix, part in parts.items():
                measured[f"{name}-{who.lower()}{suffix}"] = _estimate(result[side]["correlations"].get(part))
        notes = [*stopped(runs[STUDY]), *(_effects(who, result[side]) for who, result in results.items())]
        return Outcome(rows, lambda path: draw_patching(results, path, side), measured, notes)

    return Experiment(name, about[0], about[1], _studies, analyse)


def _estimate(found: Mapping[str, Any] | None) -> Estimate:
    """A correlation as an estimate; NaN where there is none."""
    if not found or found["value"] is None:
        return Estimate(math.nan, math.nan, math.nan, "no correlation", 0, 0)
    return Estimate(found["value"], found["low"], found["high"], found["method"], 1, found["pairs"])


def _effects(who: str, part: Mapping[str, Any]) -> str:
    return f"{who}: largest mean NLD {part['largest']}, median gaps in nats {part['median_gaps']}"


_BOTH = {"": "all"}
_DIRECTIONS = {"-changed-unchanged": "changed->unchanged", "-unchanged-changed": "unchanged->changed"}
EXPERIMENTS = (
    _figure(
        "fig3", "cued",
        ("What moves an answer moves its explanation",
         "Pearson r 0.89 (M_reg), 0.53 (M_unreg), 0.20 (M0); max NLD ≈ 0.4."),
        _BOTH,
    ),
    _figure("fig15", "cued", ("Patching by direction", "As figure 3, with both directions apart."), _DIRECTIONS),
    _figure(
        "fig16", "ablated",
        ("Patching against the answer without the cue", "0.72 / −0.04 by direction; M_unreg 0.01 / −0.30."),
        _DIRECTIONS,
    ),
)  # fmt: skip
