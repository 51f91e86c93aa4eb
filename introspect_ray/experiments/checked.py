"""What the headline's runs have to stand: the controls, and table 2 (general capabilities, lm-evaluation-harness)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.experiments import plots
from introspect_ray.experiments.controls import GAP, SHUFFLED, SIBLINGS, SWAP, controls_of
from introspect_ray.experiments.controls_load import load_subjects
from introspect_ray.experiments.headline import POINTS, headline_studies
from introspect_ray.experiments.measure import Bar, finished, over_worlds_t, stopped
from introspect_ray.experiments.protocol import Experiment, Outcome, Run, Runs, Study
from introspect_ray.experiments.settings import Settings
from introspect_ray.runs.policy_cases import read_cases
from introspect_ray.scores.evaluated_cases import M0
from introspect_ray.scores.statistics import Estimate

# By claim id, the control, its quantity, and the part of an explanation; of the runs at λ = 1.
_CONTROLS = {
    "gap": (GAP, "self - orig", "em"),
    "siblings": (SIBLINGS, "self - sibling", "em"),
    "drift-swap": (SWAP, "own - sibling's", "em"),
    "beyond-marginals": (SHUFFLED, "gap beyond marginals", "em"),
    "changed-siblings": (SIBLINGS, "self - sibling", "changed_accuracy"),
    "changed-beyond-marginals": (SHUFFLED, "gap beyond marginals", "changed_accuracy"),
}
_REG = "kl_weight=1"


def _controls(runs: Runs) -> Outcome:
    """Rows of all worlds; a claim is about the mean over worlds, each of which is one number with all of its seeds."""
    rows: list[dict[str, Any]] = []
    by_claim: dict[str, list[Mapping[str, Any]]] = {}
    for world, members in runs.items():
        known = finished(members)
        if not known:
            continue
        folders = [run.folder for run in known]
        inputs = {"runs": sorted(Path(folder).name for folder in folders)}
        found = known[0].cached("controls", inputs, partial(_rows, folders))
        rows += [{"world": world, **row} for row in found]
        for claim, wanted in _CONTROLS.items():
            named = f"controls-{world.partition('-')[0]}-{claim}"  # worlds are named by kind and number
            by_claim.setdefault(named, []).extend(row for row in found if _is(row, wanted))
    measured = {claim: _over_worlds(of) for claim, of in by_claim.items() if of}
    notes = stopped([run for members in runs.values() for run in members])
    return Outcome(rows, lambda path: _draw_controls(path, measured), measured, notes)


def _rows(folders: Sequence[str]) -> list[dict[str, Any]]:
    return [row.flat for row in controls_of(load_subjects(folders)).rows]


def _is(row: Mapping[str, Any], wanted: tuple[str, str, str]) -> bool:
    """Whether it is the row of a claim: a number of the runs with the regulariser."""
    named = (row["control"], row["quantity"], row["part"]) == wanted
    return named and row["training"].startswith(_REG) and row["value"] is not None


def _over_worlds(rows: Sequence[Mapping[str, Any]]) -> Estimate:
    """One world: its own interval; several: the t interval over worlds."""
    if len(rows) == 1:
        (row,) = rows
        return Estimate(row["value"], row["low"], row["high"], row["interval"], row["runs"], row["questions"])
    return over_worlds_t([row["value"] for row in rows], sum(row["runs"] for row in rows))


def _draw_controls(path: Path, measured: Mapping[str, Estimate]) -> None:
    def draw(axes: Sequence[Any]) -> None:
        bars = [Bar(one.value, one.low, one.high) for one in measured.values()]
        names = [claim.removeprefix("controls-") for claim in measured]
        plots.gaps(axes[0], names, {"λ = 1": bars}, "the gap, and what it must leave behind")

    plots.figure(path, 1, draw, (7, 4))


# --- table 2 ---------------------------------------------------------------------------------------------------------


def _tab2_studies(settings: Settings) -> list[Study]:
    return [Study("trained", settings.single(), {}, POINTS, settings.seeds["sweeps"][:1])]


def _tab2(runs: Runs) -> Outcome:
    """On the organism: its uncued questions, with M0's own answer as the key."""
    members = finished(runs["trained"])
    policies = {f"λ = {run.point['kl_weight']:g}": run.policy for run in members}
    inputs = {"runs": sorted(Path(run.folder).name for run in members)}
    rows: list[dict[str, Any]] = members[0].cached("harness", inputs, lambda: _harness(members[0], policies))
    reg = [row for row in rows if row["policy"] == "λ = 1" and row["difference"] is not None]
    measured = {}
    if reg and reg[0]["low"] is not None:
        row = reg[0]
        method = "95 % normal interval of the paired difference over items"
        measured["tab2-little-is-lost"] = Estimate(row["difference"], row["low"], row["high"], method, 1, row["items"])

    def draw(axes: Sequence[Any]) -> None:
        names = [row["policy"] for row in rows]
        plots.bars(axes[0], names, {rows[0]["task"]: ([row["value"] for row in rows], plots.SELF)}, rows[0]["metric"])

    return Outcome(rows, lambda path: plots.figure(path, 1, draw, (6, 3.8)), measured, stopped(runs["trained"]))


def _harness(run: Run, policies: Mapping[str, str]) -> list[dict[str, Any]]:
    """Scores of M0 and of trained policies as flat rows. Raises UserError without the harness."""
    from introspect_ray.experiments.harness import check_harness, multiple_choice_task, score_policies

    check_harness()
    table, texts = run.cases(), {case.case_id: case for case in read_cases(run.cfg)[1]}
    if missing := [one for one in table.case_ids if one not in texts]:
        raise UserError(f"{run.folder}: {len(missing)} evaluated cases are no longer in the task, e.g. {missing[0]!r}")
    cases = [texts[one] for one in table.case_ids]
    with tempfile.TemporaryDirectory() as scratch:
        task = multiple_choice_task("organism", cases, table.pairs[M0], run.cfg.policy, Path(scratch))
        return [score._asdict() for score in score_policies({"M0": run.cfg.policy, **policies}, [task])]


EXPERIMENTS = (
    Experiment(
        "controls", "Controls on the headline's runs",
        "Not in the paper: what the gap would be if explanations did not know this policy.",
        headline_studies, _controls,
    ),
    Experiment(
        "tab2", "General capabilities",
        "Within about 2 points of M0 on most tasks (MMLU 73.0 / 72.3 / 72.7).", _tab2_studies, _tab2,
    ),
)  # fmt: skip
