"""What the commands print on their way: the plan of --dry-run, tables of summaries, and what is weak about M0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from introspect_ray.config import RunConfig
from introspect_ray.errors import AlarmError
from introspect_ray.runs.placement import plan_text
from introspect_ray.runs.preflight import Prepared
from introspect_ray.runs.results import warned
from introspect_ray.runs.search_space import Space, shown_name
from introspect_ray.scores.grid import grid_table
from introspect_ray.scores.metrics import constant_explainer
from introspect_ray.scores.table import table
from introspect_ray.storage import Store

MOSTLY = 0.5


def print_plan(trials: Sequence[RunConfig], prepared: Prepared) -> None:
    """--dry-run: the resolved config, the resource budget and the placement."""
    print(plan_text(trials[0], len(trials), len(prepared.train), len(prepared.test), prepared.max_model_len))


def report_sweep(
    summaries: Sequence[dict[str, Any]], stopped: Sequence[dict[str, Any]], spaces: Sequence[Space], store: Store
) -> None:
    """The table, with a line for each trial that was stopped. Raises AlarmError if any was: the sweep has gaps."""
    keys = [space.leaf for space in spaces]
    points = store.read_json("sweep.json")["aggregate"]
    if summaries and len(keys) == 1 and all(isinstance(row[keys[0]], int | float) for row in summaries):
        print_summaries(summaries, keys[0], points)
    elif summaries:
        print(grid_table(summaries, keys, points))
    ends = [(kind, row) for row in stopped for kind in ("stopped", "failed") if kind in row]
    shown = [(kind, f"{shown_name({key: row[key] for key in (*keys, 'seed')})}: {row[kind]}") for kind, row in ends]
    for kind, line in shown:
        print(f"{kind:8} {line}", flush=True)
    if lines := [line for kind, line in shown if kind == "failed"]:
        raise AlarmError(
            f"{len(lines)} of {len(summaries) + len(stopped)} trials failed, the first is {lines[0]}; the others' "
            f"results are in {store.join('sweep.json')}, and --resume runs those that failed again"
        )


def print_summaries(
    summaries: Sequence[dict[str, Any]], key: str, points: Sequence[dict[str, Any]] | None = None
) -> None:
    """points: the block "aggregate" of sweep.json, whose rows hold the swept values too."""
    print(table(summaries, key, [row[key] for row in summaries] if points else None, points))


def report_findings(cfg: RunConfig, setup: Any) -> None:
    """Say what is weak about M0 as a subject before its results are read. Raises AlarmError if alarms.collapse=stop."""
    from introspect_ray.runs.setup import findings, untrained_scores

    scores = untrained_scores(setup)
    untrained, off_format = scores["explanation"]["orig"], scores["behavior"]["off_format"]
    constant, share = constant_explainer(setup.m0_reported)
    unparsed = "" if untrained["unparsed"] is None else f", unparsed {untrained['unparsed']:.3f}"
    print(
        f"M0: untrained explanation EM {untrained['em']:.3f}{unparsed}; "
        f"always saying {constant!r} would score {share:.3f}",
        flush=True,
    )
    if off_format > MOSTLY:
        left = f"free decoding would leave the labels in {off_format:.0%} of the answers"
        warned([f"m0: {left}, so they tell little; try task.answer_prefix"])
    weak = findings(setup) if cfg.alarms.collapse != "off" else []
    warned([str(finding) for finding in weak])
    if weak and cfg.alarms.collapse == "stop":
        raise AlarmError(
            f"{'; '.join(map(str, weak))}: too one-sided to train on. Choose another policy, task wording or "
            "task.answer_prefix, or set alarms.collapse=warn"
        )
