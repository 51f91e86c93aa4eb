"""Figures 3, 15 and 16 from finished runs: activation patching of M_reg, M_unreg and M0.

    python -m introspect_ray.experiments.patching_figure OUT.png RUN...

patches the policy of every run, and M0 once, prints the correlations, and writes OUT.png and OUT.json.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from introspect_ray import cli
from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import RunConfig, override
from introspect_ray.errors import UserError
from introspect_ray.patching import (
    DIRECTIONS,
    choose_pairs,
    correlations,
    grid_rows,
    largest_effects,
    median_gaps,
    patch_grid,
)
from introspect_ray.patching.pairs import Region, Side
from introspect_ray.policy import load_model, load_tokenizer, local_policy
from introspect_ray.runs.policy_cases import read_cases
from introspect_ray.scores.drawing import ORIG, SELF, plain_axes, save
from introspect_ray.scores.evaluated_cases import POLICY
from introspect_ray.scores.evaluation_table import TRAINED, from_table, read_parquet
from introspect_ray.storage import Store, open_store

SIDES: tuple[Side, ...] = ("cued", "ablated")
LAST = 10  # tokens of x∖C that are patched (paper §C.2)


def patch_run(
    folder: str, who: str = POLICY, *, limit: int = 128, seed: int = 0, region: Region = "prefix"
) -> dict[str, Any]:
    """Patch the trained policy of a run, or its M0, on pairs of its held-out cases: JSON values.

    folder: a run's output_dir on this machine, whose training was not LoRA. who: "policy" or "m0". limit, seed,
    region: of choose_pairs. Returns by side ("cued": figures 3 and 15, "ablated": figure 16) the "rows" of the grid,
    the "correlations" (the paper's plain means over pairs that are at least MIN_GAP apart) and "weighted" ones (by gap,
    all pairs), the "largest" mean NLDs and the "median_gaps"; with it the number of pairs. Raises UserError where there
    is nothing to patch. What cannot be computed (no pair is far enough apart) is None.
    """
    store = _trained_run(folder)
    cfg = override(RunConfig(), store.read_json("run.json"))
    table = from_table(read_parquet(store.read_bytes(TRAINED)))
    path = local_policy(store.join("policy") if who == POLICY else cfg.policy)
    tokenizer = load_tokenizer(path)
    texts = {case.case_id: case for case in read_cases(cfg)[1]}
    if missing := [case_id for case_id in table.case_ids if case_id not in texts]:
        raise UserError(f"{folder}: {len(missing)} evaluated cases are no longer in the task, e.g. {missing[0]!r}")
    cases = [tokenize_case(texts[case_id], tokenizer, cfg.task.answer_prefix) for case_id in table.case_ids]
    pairs = choose_pairs(cases, table.pairs[POLICY if who == POLICY else table.orig], limit, seed, region)
    model = load_model(path)
    result: dict[str, Any] = {"who": who, "pairs": len(pairs)}
    for side in SIDES:
        grid = patch_grid(model, pairs, side=side, region=region, last=LAST if side == "ablated" else None)
        rows = grid_rows(grid)
        result[side] = {
            "rows": rows,
            "correlations": {name: found._asdict() for name, found in correlations(grid).items()},
            "weighted": {name: found._asdict() for name, found in correlations(grid, weighted=True).items()},
            "largest": largest_effects(rows),
            "median_gaps": median_gaps(grid),
            "weighted_rows": grid_rows(grid, weighted=True),
        }
    return _without_nan(result)


def _trained_run(folder: str) -> Store:
    """The files of a run whose whole policy was trained. Raises UserError for another folder."""
    store = open_store(folder)
    if missing := [name for name in ("run.json", TRAINED) if not store.exists(name)]:
        raise UserError(f"{folder} has no {missing[0]}: give the output_dir of a finished training run")
    if store.read_json("run.json").get("method") == "lora":
        raise UserError(f"{folder} was trained with method=lora: only runs with method=full are patched")
    return store


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _shown(correlation: Mapping[str, Any]) -> str:
    """Example: "r = +0.62 [+0.53, +0.69]"."""
    value, low, high = (correlation[key] for key in ("value", "low", "high"))
    return "r not defined" if value is None else f"r = {value:+.2f} [{low:+.2f}, {high:+.2f}]"


def draw_patching(results: Mapping[str, Mapping[str, Any]], path: str | Path, side: Side = "cued") -> None:
    """One scatter per policy: a dot per (layer, token) and direction, behaviour NLD against explanation NLD.

    results: by the title of the panel, as patch_run gives them. A policy whose prompts are too close to be told apart
    (M0 often has no opinion about its explanations) is drawn from its gap-weighted means, and its title says so.
    """
    figure, axes = plain_axes(len(results), (4.2 * len(results), 4.8), grid=False)
    for axis, (title, result) in zip(axes, results.items(), strict=True):
        part = result[side]
        plain = bool(part["rows"])
        rows, found = (part["rows"], part["correlations"]) if plain else (part["weighted_rows"], part["weighted"])
        for direction, marker, colour in zip(DIRECTIONS, "o^", (SELF, ORIG), strict=True):
            own = [row for row in rows if row["direction"] == direction]
            points = [row["nld_behavior"] for row in own], [row["nld_explanation"] for row in own]
            name = f"{direction.replace('->', ' → ')}: {_shown(found[direction])}"
            axis.scatter(*points, marker=marker, c=colour, s=26, alpha=0.8, label=name)
        whole, gap = found["all"], part["median_gaps"]["explanation"]
        axis.set_title(
            f"{title}: {_shown(whole)}\n"
            f"{whole['pairs']} pairs, {whole['points']} points"
            + ("" if plain else f", weighted by gaps of {gap:.2g} nats"),
            fontsize=10,
        )
        axis.axhline(0, color="#cccccc", lw=0.8, zorder=0)
        axis.axvline(0, color="#cccccc", lw=0.8, zorder=0)
        axis.set_xlabel(f"NLD of the answer {'with' if side == 'cued' else 'without'} the cue")
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    axes[0].set_ylabel("NLD of the explanation, changed or not")
    save(figure, path)


def main(arguments: Sequence[str]) -> None:
    """The command of the module's docstring."""
    if len(arguments) < 2:
        raise UserError("usage: python -m introspect_ray.experiments.patching_figure OUT.png RUN...")
    out, runs = Path(arguments[0]), arguments[1:]
    if out.suffix not in (".png", ".pdf", ".svg") or not out.absolute().parent.is_dir():
        raise UserError(f"{out} comes first, a figure (.png, .pdf, .svg) in a folder that exists; then the runs")
    for run in runs:
        _trained_run(run)
    results = {Path(run).name: patch_run(run) for run in runs} | {"M0": patch_run(runs[0], "m0")}
    for name, result in results.items():
        for side in SIDES:
            for averaging in ("correlations", "weighted"):
                for part, r in result[side][averaging].items():
                    print(f"{name:24} {side:8} {averaging:13} {part:20} {_shown(r)}, {r['pairs']} pairs")
            print(f"{name:24} {side:8} largest {result[side]['largest']} median gaps {result[side]['median_gaps']}")
    out.with_suffix(".json").write_text(json.dumps(results, indent=1))
    for side in SIDES:
        draw_patching(results, out if side == "cued" else out.with_stem(f"{out.stem}_ablated"), side)


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
