"""Figures 3, 15 and 16 from the files of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import RolloutConfig, RunConfig
from introspect_ray.engines.transformers_engine import TransformersEngine
from introspect_ray.errors import UserError
from introspect_ray.experiments.patching_figure import draw_patching, main, patch_run
from introspect_ray.policy import load_tokenizer, local_policy
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.evaluation_table import TRAINED, to_parquet, to_table
from introspect_ray.tasks import load_cases

CASES = 40


def run_folder(folder: Path, empty: bool = False) -> str:
    """What patching needs of a run of the organism whose trained policy is the second organism."""
    cfg = RunConfig(output_dir=str(folder))
    cases = list(load_cases(cfg.task)[1])[:CASES]
    shutil.copytree(local_policy("organism:second"), folder / "policy")
    tokens = [tokenize_case(case, load_tokenizer(local_policy("organism"))) for case in cases]
    pairs = {}
    for name, policy in (("m0", "organism"), ("policy", "organism:second")):
        engine = TransformersEngine(local_policy(policy), RolloutConfig(engine="transformers"), 64, "full", 1, 0)
        pairs[name] = engine.label_pairs(tokens)
    none, ids = [""] * CASES, [case.case_id for case in cases]
    labels = [case.labels for case in cases]
    table = to_table(EvaluatedCases(ids, none, none, labels, pairs, none, [None] * CASES))
    (folder / "evaluation").mkdir()
    (folder / TRAINED).write_bytes(to_parquet(table.slice(0, 0) if empty else table))
    (folder / "run.json").write_text(json.dumps(cfg.model_dump(mode="json")))
    return str(folder)


def test_a_run_is_patched_and_drawn(tmp_path: Path) -> None:
    """By direction a point per layer but the last (2) and token of x that differs or follows one (7), or of x∖C (3)."""
    folder = run_folder(tmp_path / "run")
    results = {who: patch_run(folder, who, limit=4) for who in ("policy", "m0")}
    for who, result in results.items():
        json.dumps(result, allow_nan=False)
        assert (result["who"], result["pairs"]) == (who, 4)
        for side, tokens in (("cued", 7), ("ablated", 3)):
            rows = result[side]["weighted_rows"]
            assert {(row["direction"], row["layer"], row["token"]) for row in rows} == {
                (direction, layer, -token)
                for direction in ("changed->unchanged", "unchanged->changed")
                for layer in (0, 1)
                for token in range(1, tokens + 1)
            }
            assert result[side]["weighted"]["all"]["points"] == 2 * 2 * tokens
            draw_patching(results, tmp_path / f"{side}.png", side)
            assert (tmp_path / f"{side}.png").stat().st_size > 10_000


def test_a_run_without_a_pair_of_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no two prompts to patch between among 0 cases"):
        patch_run(run_folder(tmp_path / "run", empty=True))


@pytest.mark.parametrize(("config", "said"), [(None, "no run.json"), ({"method": "lora"}, "method=lora")])
def test_what_cannot_be_patched_is_refused_first(tmp_path, config, said):
    if config:
        (tmp_path / "evaluation").mkdir()
        (tmp_path / TRAINED).touch()
        (tmp_path / "run.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        main([str(tmp_path / "out.png"), str(tmp_path)])
