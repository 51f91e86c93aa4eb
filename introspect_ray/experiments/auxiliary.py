"""Figures 7, 8, 19 and 20: explanations track behaviour that other training data brings (paper §5, eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from introspect_ray.experiments import plots
from introspect_ray.experiments.measure import (
    PARTS,
    SCORES,
    bar,
    by_point,
    contrast,
    explained,
    finished,
    gap,
    mean,
    over_runs,
    row,
    score,
    score_gap,
    stopped,
)
from introspect_ray.experiments.protocol import Experiment, Organism, Outcome, Run, Runs, Study, Trained
from introspect_ray.experiments.settings import Settings
from introspect_ray.scores.evaluated_cases import AGAINST, TEST, EvaluatedCases

AUX, REG = "aux", "reg"
EXPLAINER = {"kl_weight": 1.0}


class Row(NamedTuple):
    """A row of figure 8: a task with auxiliary data. part: of the settings."""

    kind: str
    part: str
    title: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.part}"


ROWS = (
    Row("hint", "aux_chats", "Hints + chats"),
    Row("hint", "aux_warm", "Hints + warm answers"),
    Row("refusal", "aux_text", "Refusal + plain text"),
    Row("refusal", "aux_refusals", "Refusal + direct refusals"),
)


def _organism(settings: Settings, kind: str) -> Organism:
    """Auxiliary data is a file of a built organism, so the bundled one does not do."""
    return settings.single(kind) or Organism(kind)


# --- figure 8 --------------------------------------------------------------------------------------------------------


def _fig8_studies(settings: Settings) -> list[Study]:
    """Per kind the explainer without auxiliary data, per row the one with it, and the first one scored against it."""
    seeds, studies = settings.seeds["sweeps"], list[Study]()
    for kind in dict.fromkeys(line.kind for line in ROWS):
        studies.append(Study(f"{REG}-{kind}", _organism(settings, kind), EXPLAINER, ({},), seeds))
    for line in ROWS:
        organism, part = _organism(settings, line.kind), settings.part(line.part)
        studies.append(Study(f"{AUX}-{line.name}", organism, {**EXPLAINER, **part}, ({},), seeds))
        crossed = {"eval.policy": Trained(f"{REG}-{line.kind}"), "eval.against": (Trained(f"{AUX}-{line.name}"),)}
        studies.append(Study(f"cross-{line.name}", organism, crossed, ({},), seeds, evaluate=True))
    return studies


def _fig8(runs: Runs) -> Outcome:
    rows: list[dict[str, Any]] = []
    measured: dict[str, Any] = {}
    shown: dict[str, Sequence[float | None]] = {}
    for line in ROWS:
        aux, crossed = finished(runs[f"{AUX}-{line.name}"]), finished(runs[f"cross-{line.name}"])
        if not aux:
            continue
        gain = contrast(aux, crossed, explained(), _about_aux)
        rows += [
            {**row(group, row=line.name), "reg_to_aux_em": _crossed(crossed), "aux_over_reg": gain.value}
            for group in by_point(aux)
        ]
        measured |= {f"fig8-{line.name}-self-over-orig": gap(aux), f"fig8-{line.name}-self-over-reg": gain}
        measured[f"fig8-{line.name}-behavior"] = score(aux, "behavior", "em")
        shown[line.title] = (
            mean(aux, "explanation", "self", "em"), mean(aux, "explanation", "orig", "em"), _crossed(crossed),
            mean(aux, "behavior", "em"),
        )  # fmt: skip
    notes = stopped([run for members in runs.values() for run in members])
    return Outcome(rows, lambda path: _draw_fig8(path, shown), measured, notes)


def _em_on_aux(run: Run) -> float:
    """Of aux itself: Self. Of reg scored against aux: reg→aux."""
    if run.study.startswith("cross-"):
        (scores,) = run.summary["against"].values()
        return float(scores["em"])
    return float(run.summary["explanation"]["self"]["em"])


def _about_aux(cases: EvaluatedCases) -> Any:
    """1 where reg's explanation is right about aux, the one further policy of the evaluation."""
    (name,) = (name for name in cases.pairs if name.startswith(AGAINST))
    return explained(name)(cases)


def _crossed(runs: Sequence[Run]) -> float | None:
    return over_runs([_em_on_aux(run) for run in runs]).value if runs else None


def _draw_fig8(path: Path, shown: Mapping[str, Sequence[float | None]]) -> None:
    names = ("aux → aux (Self)", "aux → M0 (Orig)", "reg → aux")
    colours = (plots.SELF, plots.ORIG, plots.GREY)

    def draw(axes: Sequence[Any]) -> None:
        titles = list(shown)
        plots.bars(axes[0], titles, {"aux, to M0": ([shown[one][3] for one in titles], plots.BEHAVIOR)}, "Behavior EM")
        series = {name: ([shown[one][at] for one in titles], colours[at]) for at, name in enumerate(names)}
        plots.bars(axes[1], titles, series, "Explanation EM")
        for axis in axes:
            axis.tick_params(axis="x", rotation=15)

    plots.figure(path, 2, draw, (13, 4.4))


# --- figures 7, 19 and 20 --------------------------------------------------------------------------------------------


def _fig7_studies(settings: Settings) -> list[Study]:
    """Explanations of hints beside behaviour on J_train; both explainers are scored on hints, J_train and J_test."""
    organism, seeds = _organism(settings, "jabberwocky"), settings.seeds["sweeps"]
    studies = [
        Study(REG, organism, EXPLAINER, ({},), seeds),
        Study(AUX, organism, {**EXPLAINER, **settings.part("jabberwocky_behavior")}, ({},), seeds),
    ]
    for split in ("train", "test"):
        cases = settings.part(f"jabberwocky_{split}")
        own = {**cases, "eval.policy": Trained(AUX)}
        crossed = {**cases, "eval.policy": Trained(REG), "eval.against": (Trained(AUX),)}
        studies.append(Study(f"{AUX}-j_{split}", organism, own, ({},), seeds, evaluate=True))
        studies.append(Study(f"cross-j_{split}", organism, crossed, ({},), seeds, evaluate=True))
    return studies


def _fig7(runs: Runs) -> Outcome:
    sets = {"hints": AUX, "J_train": f"{AUX}-j_train", "J_test": f"{AUX}-j_test"}
    rows = [row(group, cases=name) for name, study in sets.items() for group in by_point(runs[study])]
    measured: dict[str, Any] = {}
    crossed: dict[str, float | None] = {"hints": None}
    for name, study in sets.items():
        members = finished(runs[study])
        if not members:
            continue
        measured[f"fig7-{name}-gap"] = gap(members)
        measured[f"fig7-{name}-self"] = score(members, "explanation", "self", "em")
        if name != "hints":
            other = finished(runs[f"cross-{name.lower()}"])
            crossed[name] = _crossed(other)
            measured[f"fig7-{name}-reg"] = over_runs([_em_on_aux(run) for run in other])
            measured[f"fig7-{name}-self-over-reg"] = contrast(members, other, explained(), _about_aux)
    rows += [{"cases": name, "reg_to_aux_em": value} for name, value in crossed.items() if value is not None]

    def draw(axes: Sequence[Any]) -> None:
        series = {
            "aux → aux (Self)": (
                [mean(finished(runs[one]), "explanation", "self", "em") for one in sets.values()],
                plots.SELF,
            ),
            "aux → M0 (Orig)": (
                [mean(finished(runs[one]), "explanation", "orig", "em") for one in sets.values()],
                plots.ORIG,
            ),
            "reg → aux": ([crossed.get(name) for name in sets], plots.GREY),
        }
        plots.bars(axes[0], list(sets), series, "Explanation EM")
        there = [(name, finished(runs[study])) for name, study in sets.items() if finished(runs[study])]
        intervals = {short: [bar(gap(members, part)) for _, members in there] for part, short in PARTS.items()}
        plots.gaps(axes[1], [name for name, _ in there], intervals)

    notes = stopped([run for members in runs.values() for run in members])
    return Outcome(rows, lambda path: plots.figure(path, 2, draw, (11, 4.2)), measured, notes)


def _fig19(runs: Runs) -> Outcome:
    """All metrics on hints and on J_train."""
    sets = {"hints": finished(runs[AUX]), "J_train": finished(runs[f"{AUX}-j_train"])}
    rows = [row(group, cases=name) for name, members in sets.items() for group in by_point(members)]
    measured = {f"fig19-hints-{name}": score_gap(sets["hints"], name) for name in SCORES}

    def draw(axes: Sequence[Any]) -> None:
        for axis, (title, members) in zip(axes, sets.items(), strict=True):
            series = {who.title(): ([mean(members, "explanation", who, name) for name in SCORES], plots.COLOURS[who])
                      for who in ("self", "orig")}  # fmt: skip
            plots.bars(axis, ["exact", "content", "changed F1", "unchanged F1"], series, title)

    return Outcome(rows, lambda path: plots.figure(path, 2, draw, (11, 3.8)), measured)


def _fig20(runs: Runs) -> Outcome:
    """On J_test: the answers of M0 and of aux with and without the hint, and aux's explanations."""
    members = finished(runs[f"{AUX}-j_test"])
    rows: list[dict[str, Any]] = [row(group, cases="J_test") for group in by_point(members)]
    shares = {(who, side): _answers(members, who, side) for who in ("m0", "policy") for side in ("ablated", "cued")}
    rows += [
        {"policy": who, "side": side, "answer": answer, "share": share}
        for (who, side), found in shares.items()
        for answer, share in found.items()
    ]
    top = [max(_answers([run], "policy", "ablated").values()) for run in members]
    measured = {"fig20-no-answer-dominates": over_runs(top)}

    def draw(axes: Sequence[Any]) -> None:
        for axis, side in zip(axes, ("ablated", "cued"), strict=True):
            answers = sorted(shares["m0", side].keys() | shares["policy", side].keys())
            series = {name: ([shares[who, side].get(one, 0.0) for one in answers], colour)
                      for who, name, colour in (("m0", "M0", plots.ORIG), ("policy", "aux", plots.SELF))}  # fmt: skip
            plots.bars(axis, answers, series, f"answers on J_test, {'with' if side == 'cued' else 'without'} the hint")

    return Outcome(rows, lambda path: plots.figure(path, 2, draw, (10, 3.8)), measured)


def _answers(runs: Sequence[Run], who: str, side: str) -> dict[str, float]:
    """Share of each answer, over the test cases of all runs."""
    given = [getattr(pair, side) for run in runs for pair in run.cases().of(TEST).pairs[who]]
    return {answer: given.count(answer) / len(given) for answer in sorted(set(given))}


EXPERIMENTS = (
    Experiment(
        "fig7", "New behaviour is explained without explanations of it",
        "Explanation EM 90.5 on J_train and 79.8 on J_test; the explainer that never saw J is at chance.",
        _fig7_studies, _fig7,
    ),
    Experiment(
        "fig8", "Explanations track shifts that other training data brings",
        "aux→aux is above aux→M0 and above reg→aux in all four set-ups.", _fig8_studies, _fig8,
    ),
    Experiment("fig19", "New behaviour in detail", "Self > Orig on every metric on hints.", _fig7_studies, _fig19),
    Experiment(
        "fig20", "Nonsense questions that were never trained on",
        "aux answers them nearly uniformly, M0 with a bias; both defer to the hint.", _fig7_studies, _fig20,
    ),
)  # fmt: skip
