"""From finished runs to files: rows as JSON and Parquet, figures as PNG and SVG, and the section of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.experiments.claims import BUNDLED, Claim, judge
from introspect_ray.experiments.plan import Planned
from introspect_ray.experiments.protocol import Experiment, Outcome, Run
from introspect_ray.experiments.report import Judged, Section
from introspect_ray.runs.batch import result_of
from introspect_ray.storage import open_store

_NO_RUNS = "Not run: {gone} of its {all} runs are missing."


@dataclass(frozen=True)
class Judging:
    """What claims are judged with. frozen: by claim id. check: whether the runs have to be those that a claim names."""

    claims: Sequence[Claim]
    frozen: Mapping[str, str]
    check: bool

    def of(self, experiment: str, outcome: Outcome | None, runs: Sequence[Run]) -> list[Judged]:
        """The claims of an experiment, judged. outcome: None if it was not run."""
        ran = {(_world(run), run.seed) for run in runs if run.failed is None} if self.check else None
        measured = outcome.measured if outcome else {}
        return [
            Judged(
                claim, found := measured.get(claim.id), judge(claim, found, ran), self.frozen.get(claim.id, "unknown")
            )
            for claim in self.claims
            if claim.experiment == experiment
        ]


def collect(planned: Sequence[Planned]) -> list[Run]:
    """The runs that have a result, in order. One that needs a policy of a stopped run is stopped too."""
    found: list[Run] = []
    stopped: dict[str, str] = {}
    for one in planned:
        summary = result_of(one.cfg)
        lost = next((stopped[folder] for folder in one.needs if folder in stopped), None)
        if summary is None and lost:
            summary = {"failed": f"it needs the policy of a run that was stopped: {lost}"}
        if summary is None:
            continue
        if "failed" in summary:
            stopped[one.cfg.output_dir] = summary["failed"]
        found.append(Run(one.study.name, one.study.organism, one.point, one.seed, one.cfg, one.cfg.output_dir, summary))
    return found


def section(experiment: Experiment, planned: Sequence[Planned], out: Path, judging: Judging) -> Section:
    """Analyse an experiment, write OUT/<name>/{rows.json,rows.parquet,figure.png,figure.svg}, and judge its claims.

    With some runs missing the others are analysed, if each study has a finished one; notes say how many are missing.
    """
    runs = collect(planned)
    by_study: dict[str, list[Run]] = {one.study.name: [] for one in planned}
    for run in runs:
        by_study[run.study].append(run)
    gone = len(planned) - len(runs)
    empty = [name for name, members in by_study.items() if all(run.failed for run in members)]
    if empty:
        judged = judging.of(experiment.name, None, runs)
        state = _NO_RUNS.format(gone=gone, all=len(planned)) if gone else f"No run of {empty[0]} has finished."
        stopped = [f"{run.study}, seed {run.seed}: stopped, {run.failed}" for run in runs if run.failed]
        return Section(experiment.name, experiment.title, experiment.published, judged, notes=stopped, state=state)
    try:
        outcome = experiment.analyse(by_study)
    except UserError as error:
        judged = judging.of(experiment.name, None, runs)
        return Section(experiment.name, experiment.title, experiment.published, judged, state=f"Not analysed: {error}")
    notes = [*outcome.notes, *([f"{gone} of {len(planned)} runs are missing"] if gone else [])]
    return Section(
        experiment.name, experiment.title, experiment.published,
        judging.of(experiment.name, outcome, runs), outcome.rows, _write(out / experiment.name, outcome), notes,
        sum(_own_seconds(run) for run in runs), len(runs),
    )  # fmt: skip


def _world(run: Run) -> Any:
    return run.organism.world if run.organism else BUNDLED


def _own_seconds(run: Run) -> float:
    """Training and evaluation of the run; the set-up is shared."""
    timing = run.summary.get("timing_s")
    return float(timing["total"] - timing["setup"]) if timing else 0.0


def _write(folder: Path, outcome: Outcome) -> bytes | None:
    """The files of an experiment; returns the figure as PNG."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = open_store(folder)
    rows = [{name: _finite(value) for name, value in row.items()} for row in outcome.rows]
    store.write_json("rows.json", rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.write_bytes("rows.parquet", sink.getvalue().to_pybytes())
    if outcome.draw is None:
        return None
    for suffix in ("svg", "png"):
        outcome.draw(folder / f"figure.{suffix}")
    return (folder / "figure.png").read_bytes()


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
