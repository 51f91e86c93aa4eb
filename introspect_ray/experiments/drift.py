"""Figures 9, 10 and 11: how behaviour drifts while training, what to, and what an untrained policy explains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from introspect_ray.experiments import plots
from introspect_ray.experiments.headline import POINTS
from introspect_ray.experiments.measure import (
    at,
    by_point,
    contrast,
    explained,
    finished,
    over_runs,
    row,
    same_behavior,
    score,
    stopped,
)
from introspect_ray.experiments.protocol import Experiment, Outcome, Run, Runs, Study, Trained
from introspect_ray.experiments.settings import Settings
from introspect_ray.scores.evaluated_cases import POLICY, TEST
from introspect_ray.scores.metrics import label_histogram

EMA = 0.99
SERIES = {
    "behavior_cued": "y(x) as M0",
    "behavior_ablated": "y(x∖C) as M0",
    "behavior_em": "both as M0",
    "explanation_self": "Self",
    "explanation_orig": "Orig",
    "gap_over_drift": "(Self − Orig) / (1 − Behavior EM)",
}
_COLOURS = (plots.TEAL, plots.PURPLE, plots.BEHAVIOR, plots.SELF, plots.ORIG, plots.GREY)
_LEAST_DRIFT = 0.01  # below it the ratio to the drift says nothing
SECOND, FIRST = "second-generation", "runs"


def time_weighted(steps: Sequence[int], values: Sequence[float], weight: float = EMA) -> list[float]:
    """Time-weighted exponential moving average, without bias (paper fig. 9): a value of k steps ago weighs weight^k,
    whatever steps lie between. Same length as `values`."""
    total = norm = 0.0
    found, last = [], None
    for step, value in zip(steps, values, strict=True):
        kept = 1.0 if last is None else weight ** (step - last)
        total, norm, last = kept * total + value, kept * norm + 1.0, step
        found.append(total / norm)
    return found


def smoothed(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """By name of SERIES: (steps, averages). The last one is of the averages of the three it is made from."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for name in list(SERIES)[:-1]:
        known = [(line["step"], line[name]) for line in rows if line.get(name) is not None]
        if known:
            steps, values = map(list, zip(*known, strict=True))
            found[name] = (steps, time_weighted(steps, values))
    parts = [found[name] for name in ("explanation_self", "explanation_orig", "behavior_em") if name in found]
    if len(parts) == 3 and len({len(steps) for steps, _ in parts}) == 1:
        drift = [1 - value for value in parts[2][1]]
        kept = [at for at, one in enumerate(drift) if one >= _LEAST_DRIFT]
        ratio = [(parts[0][1][at] - parts[1][1][at]) / drift[at] for at in kept]
        found["gap_over_drift"] = ([parts[0][0][at] for at in kept], ratio)
    return found


def _fig9_studies(settings: Settings) -> list[Study]:
    return [Study(FIRST, settings.single("cued"), {}, POINTS, settings.seeds["sweeps"])]


def _fig9(runs: Runs) -> Outcome:
    members = finished(runs[FIRST])
    curves = [(run, smoothed(run.steps())) for run in members]
    rows = [
        {"kl_weight": run.point["kl_weight"], "seed": run.seed, "series": name, "step": step, "value": value}
        for run, series in curves
        for name, (steps, values) in series.items()
        for step, value in zip(steps, values, strict=True)
        if step % 10 == 0 or step == steps[-1]
    ]
    unreg = at(members, kl_weight=0.0)
    measured = {
        "fig9-drifts": contrast(at(members, kl_weight=1.0), unreg, same_behavior()),
        "fig9-cued-drifts-more": contrast(unreg, unreg, same_behavior("ablated"), same_behavior("cued")),
    }
    shown = {
        weight: next((series for run, series in curves if run.point["kl_weight"] == weight), {})
        for weight in (1.0, 0.0)
    }
    return Outcome(rows, lambda path: _draw_fig9(path, shown), measured, stopped(runs[FIRST]))


def _draw_fig9(path: Path, shown: dict[float, dict[str, tuple[list[int], list[float]]]]) -> None:
    def draw(axes: Sequence[Any]) -> None:
        for axis, (weight, series) in zip(axes, shown.items(), strict=True):
            for (name, label), colour in zip(SERIES.items(), _COLOURS, strict=True):
                if name in series:
                    steps, values = series[name]
                    style = "--" if name == "gap_over_drift" else "-"
                    axis.plot(steps, [100 * value for value in values], style, color=colour, label=label, linewidth=1.8)
            axis.set_title(f"λ = {weight:g}, first seed, time-weighted average {EMA:g}", fontsize=11)
            axis.set_xlabel("training step")
            axis.set_ylim(-30, 105)
            axis.legend(fontsize=8, frameon=False)

    plots.figure(path, 2, draw, (12, 4.4))


# --- figure 10: what it drifts to, and a second generation -----------------------------------------------------------


def _fig10_studies(settings: Settings) -> list[Study]:
    organism, seeds = settings.single(), settings.seeds["sweeps"]
    first = Study(FIRST, organism, {}, ({"kl_weight": 1.0},), seeds)
    pupil = {"kl_weight": 1.0, "reference_policy": Trained(FIRST, (("kl_weight", 1.0),))}
    return [first, Study(SECOND, organism, pupil, ({},), seeds)]


def _fig10(runs: Runs) -> Outcome:
    first, second = finished(runs[FIRST]), finished(runs[SECOND])
    rows: list[dict[str, Any]] = []
    for who in ("m0", POLICY):
        for category, share in histogram(first, who).items():
            rows.append({"what": "histogram", "policy": who, "category": category, "share": share})
    rows += [
        row(group, what=name) for name, members in ((FIRST, first), (SECOND, second)) for group in by_point(members)
    ]
    least = [min(share for who in ("m0", POLICY) for share in histogram([run], who).values()) for run in first]
    measured = {
        "fig10-second-generation": contrast(second, first, explained("orig"), explained("self")),
        "fig10-second-generation-level": score(second, "explanation", "orig", "em"),
        "fig10-self-changed-f1": score(first, "explanation", "self", "changed_f1"),
        "fig10-self-unchanged-f1": score(first, "explanation", "self", "unchanged_f1"),
        "fig10-no-category-vanishes": over_runs(least),
    }
    notes = stopped([*runs[FIRST], *runs[SECOND]])
    return Outcome(rows, lambda path: _draw_fig10(path, first, second), measured, notes)


def histogram(runs: Sequence[Run], who: str) -> dict[str, float]:
    """Share of each of the {changed, unchanged} x labels explanations of a policy, over the test cases of all runs."""
    counts: dict[str, int] = {}
    for run in runs:
        cases = run.cases().of(TEST)
        answers = list(dict.fromkeys(label for labels in cases.labels for label in labels))
        for category, count in label_histogram(cases.pairs[who], answers).items():
            counts[category] = counts.get(category, 0) + count
    total = sum(counts.values())
    return {category: count / total for category, count in counts.items()}


def _draw_fig10(path: Path, first: Sequence[Run], second: Sequence[Run]) -> None:
    shares = {who: histogram(first, who) for who in ("m0", POLICY)}
    categories = list(shares["m0"])

    def draw(axes: Sequence[Any]) -> None:
        about = (("m0", "E(M0)", plots.ORIG), (POLICY, "E(M), λ = 1", plots.SELF))
        series = {name: ([shares[who].get(one) for one in categories], colour) for who, name, colour in about}
        plots.bars(axes[0], categories, series, "(a) what there is to explain")
        axes[0].set_ylim(0, 115 * max(map(max, (found.values() for found in shares.values()))))
        axes[0].tick_params(axis="x", rotation=60)
        names = ["M_reg explains itself", "trained on M_reg's labels,\nexplains M_reg"]
        levels = [score(first, "explanation", "self", "em").value, score(second, "explanation", "orig", "em").value]
        plots.bars(axes[1], names, {"Explanation EM": (levels, plots.SELF)}, "(b) a second generation")

    plots.figure(path, 2, draw, (12, 4.4))


# --- figure 11: prompted, not trained --------------------------------------------------------------------------------


def _fig11_studies(settings: Settings) -> list[Study]:
    points = tuple({"task.shots": shots} for shots in settings.values["shots"])
    return [Study("prompted", settings.single(), {}, points, (0,), evaluate=True)]


def _fig11(runs: Runs) -> Outcome:
    members = finished(runs["prompted"])
    rows = [_prompted(run) for run in members]
    best = max(rows, key=lambda one: one["em"], default=None)
    measured = {} if best is None else {"fig11-prompting-is-not-enough": _wilson(best)}

    def draw(axes: Sequence[Any]) -> None:
        names = [f"{one['shots']} shots" for one in rows]
        plots.bars(axes[0], names, {"M0, prompted": ([one["em"] for one in rows], plots.GREY)}, "Explanation EM")

    return Outcome(rows, lambda path: plots.figure(path, 1, draw, (5, 3.8)), measured, stopped(runs["prompted"]))


def _prompted(run: Run) -> dict[str, Any]:
    scores = run.summary["explanation"]["orig"]
    low, high = scores["em_ci"]
    found = {"shots": run.point["task.shots"], "em": scores["em"], "em_low": low, "em_high": high}
    return {**found, "unparsed": scores["unparsed"], "cases": run.summary["cases"]}


def _wilson(best: dict[str, Any]) -> Any:
    from introspect_ray.scores.statistics import Estimate

    method = f"95 % Wilson interval over {best['cases']} cases, {best['shots']} shots"
    return Estimate(best["em"], best["em_low"], best["em_high"], method, 1, 0)


EXPERIMENTS = (
    Experiment(
        "fig9", "Drift while training",
        "Without the regulariser behaviour drifts within 1,000 steps, mostly on the cued answer.",
        _fig9_studies, _fig9,
    ),
    Experiment(
        "fig10", "What there is to explain, and a second generation",
        "No category vanishes; the second-generation explainer explains M_reg at 78.5 %, no better than M_reg explains "
        "M0; Self F1s above 88.",
        _fig10_studies, _fig10,
    ),
    Experiment("fig11", "M0 prompted with explained examples", "14–18 %.", _fig11_studies, _fig11),
)  # fmt: skip
