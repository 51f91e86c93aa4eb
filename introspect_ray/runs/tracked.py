"""What trackers are told of a run: tags, a description, its data, and metrics under the names that pages sort by. Pure.

Pages of MLflow sort metrics by name. So the gap stands first, and what is not of the test split has a prefix that says
so and comes later:

    gap.em, gap.content, gap.changed    Self - Orig on the test split
    gap_ci.em_low, gap_ci.em_high, ...  their 95 % intervals
    labels.*                            the labels that were trained on
    objective.dev.*                     on the dev split, by which a sweep chooses
    sweep.*                             of a sweep's own run: one step per point
    test.self.em, test.orig.em, test.behavior.em, ...
    timing_s.*                          seconds
    train_batch.*                       of the batch of a step (storage/tracking_mlflow.py)
    untrained.*                         all of these before training
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from introspect_ray import __version__
from introspect_ray.config import RunConfig
from introspect_ray.scores.table import gap_cell
from introspect_ray.storage.tracker import Dataset, TrainedPolicy

HEADLINE = ("gap.em", "gap.content", "gap.changed")
_SHORT = {"changed_accuracy": "changed"}  # the parts of a gap
_ONLY = {  # keys that have an effect under one value of another key alone
    "agreement": ("supervision.rule", "online"),
    "mixing_ratio": ("supervision.rule", "mixed"),
    "lora_rank": ("method", "lora"),
}
_SYMBOLS = {"kl_weight": "λ", "agreement": "ν", "mixing_ratio": "α"}


def run_tags(cfg: RunConfig, swept: Sequence[str] = ()) -> dict[str, str]:
    """The tags by which runs are found. `swept`: dotted keys that a sweep's own run has no single value of."""
    tags = {"task": cfg.task.name, "policy": cfg.policy, "method": cfg.method, "rule": cfg.supervision.rule}
    tags |= {key: f"{value:g}" for key, value in _settings(cfg).items()}
    leaves = {key.rsplit(".", 1)[-1] for key in swept}
    kept = {key: value for key, value in tags.items() if key not in leaves}
    return {**kept, "version": __version__, "output_dir": cfg.output_dir, **_ray_job()}


def _settings(cfg: RunConfig) -> dict[str, float]:
    """The numbers that experiments vary, as far as they have an effect."""
    found: dict[str, float] = {
        "kl_weight": cfg.kl_weight,
        "agreement": cfg.supervision.agreement,
        "mixing_ratio": cfg.supervision.mixing_ratio,
        "learning_rate": cfg.learning_rate,
        "lora_rank": cfg.lora_rank,
        "seed": cfg.seed,
    }
    state = {"supervision.rule": cfg.supervision.rule, "method": cfg.method}
    return {key: value for key, value in found.items() if key not in _ONLY or state[_ONLY[key][0]] == _ONLY[key][1]}


def _ray_job() -> dict[str, str]:
    """The id of a submitted job, as `ray job list` has it; else Ray's own number of the driver, if there is one."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {})
    if name := submitted.get("job_submission_id"):
        return {"ray_job_id": name}
    ray = sys.modules.get("ray")  # not imported: no job
    if ray is None or not ray.is_initialized():
        return {}
    return {"ray_job_id": ray.get_runtime_context().get_job_id()}


def run_description(cfg: RunConfig, summary: Mapping[str, Any] | None = None) -> str:
    """In Markdown: what is trained, and with its summary how it ended."""
    settings = ", ".join(f"{_SYMBOLS.get(key, key)} = {value:g}" for key, value in _settings(cfg).items())
    what = f"**{cfg.policy}** on task {cfg.task.name}, {cfg.supervision.rule} labels, method {cfg.method}: {settings}"
    if summary is None:
        return what
    own, orig = (100 * summary["explanation"][side]["em"] for side in ("self", "orig"))
    gaps = ", ".join(f"{_SHORT.get(part, part)} {gap_cell(gap)}" for part, gap in summary["gap"].items())
    cases = summary["cases"]
    return (
        f"{what}\n\nGap in points: {gaps}. Self {own:.1f} %, Orig {orig:.1f} %, "
        f"Behavior EM {100 * summary['behavior']['em']:.1f} %, on {cases['test']} test cases of "
        f"{cases['questions']} questions.\n\nResults: {cfg.output_dir}"
    )


def sweep_description(cfg: RunConfig, keys: Sequence[str], points: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown: a table of the gaps by point, first because pages show the first lines. points: "aggregate" of
    sweep.json; "step" is that of the metrics of a point."""
    parts = list(points[0]["gap"]) if points else []
    heads = ["step", *keys, "seeds", *(f"gap {_SHORT.get(part, part)}" for part in parts)]
    rows = []
    for step, point in enumerate(points):
        where = (step, *(point[key] for key in keys), len(point["seeds"]))
        rows.append([*map(_text, where), *map(gap_cell, point["gap"].values())])
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    methods = dict.fromkeys(str(point["gap"][part]["method"]) for point in points for part in parts)
    table = "\n".join(lines)
    return (
        f"{table}\n\nGaps (Self - Orig) in points; [ ]: {'; '.join(methods)}. {cfg.policy} on task {cfg.task.name}."
        f"\n\nResults: {cfg.output_dir}"
    )


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def datasets(
    cfg: RunConfig, digests: Mapping[str, str], counts: Mapping[str, int], labels: str, reference: str
) -> list[Dataset]:
    """The cases that a run trains on and is scored on, and the label set of its reference policy.

    digests, counts: of the "train" and the "test" cases. labels: the name of the label set in the cache.
    """
    task = cfg.task
    where = {"task": task.name, "path": task.path, "test_path": task.test_path, "hub_id": task.hub_id}
    source = {key: value for key, value in where.items() if value}
    both = counts["train"] + counts["test"]
    return [
        Dataset(f"{task.name} train", digests["train"], "training", source, counts["train"]),
        Dataset(f"{task.name} test", digests["test"], "evaluation", source, counts["test"]),
        Dataset(f"{task.name} E(M0)", labels, "labels", {**source, "policy": reference}, both),
    ]


def trained_policy(cfg: RunConfig, uri: str, scored_on: Dataset | None) -> TrainedPolicy:
    """The policy that a run exported to `uri`, under the name of the run."""
    name = cfg.output_dir.rstrip("/").rsplit("/", 1)[-1]
    params = {key: f"{value:g}" for key, value in _settings(cfg).items()}
    return TrainedPolicy(name, uri, {**params, "task": cfg.task.name, "policy": cfg.policy}, scored_on)


def tracked(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of an evaluation under the names above. Groups are left out: their names are the task's, and
    trackers refuse many characters."""
    found: dict[str, Any] = gap_metrics(scores["gap"])
    if scores["dev"] is not None:
        found["objective"] = {"dev": gap_metrics(scores["dev"]["gap"])}
    blocks = {"behavior", "disagreement", "sources"}
    test = {block: scores[block] for block in sorted(blocks) if scores[block] is not None}
    return {**found, "test": numbers_of({**scores["explanation"], **test})}


def gap_metrics(gaps: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Gaps by part, as in summary.json or sweep.json, as gap.em, gap.content, ... and gap_ci.em_low, gap_ci.em_high"""
    values: dict[str, float] = {}
    bounds: dict[str, float] = {}
    for part, gap in gaps.items():
        name = _SHORT.get(part, part)
        values[name] = gap["value"]
        bounds |= {f"{name}_low": gap["ci"][0], f"{name}_high": gap["ci"][1]}
    return {"gap": values, "gap_ci": bounds}


def point_metrics(point: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """A row of "aggregate" of sweep.json as metrics: the values of all `keys` that are numbers, and the gaps."""
    where = {key: point[key] for key in keys if isinstance(point[key], int | float)}
    return {"sweep": {**where, "seeds": len(point["seeds"]), **gap_metrics(point["gap"])}}


def numbers_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` without what metrics cannot hold: lists, which are confidence intervals."""
    kept = {key: numbers_of(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in kept.items() if not isinstance(value, list | tuple)}
