"""What a sweep runs: its values, seeds and folders, from the command line and from a config file."""

from __future__ import annotations

from pathlib import Path

import pytest

from introspect_ray.cli import parse
from introspect_ray.errors import UserError
from introspect_ray.runs.search_space import chosen_spaces, load_sweep, trial_config
from tune_spaces import agreement, kl_weight, lora_rank

MINE = "output_dir: /data/mine\nseed: 7\nsteps: 5\n"


def loaded(tmp_path: Path, file: str, *overrides: str, space=kl_weight.SPACE):
    (tmp_path / "mine.yaml").write_text(file)
    defaults = {"output_dir": "runs/sweep_kl_weight"}
    return load_sweep(space, str(tmp_path / "mine.yaml"), parse("", [*overrides]).overrides, defaults)


def test_a_file_beats_the_jobs_defaults(tmp_path):
    values, seeds, cfg = loaded(tmp_path, MINE)
    assert (cfg.output_dir, seeds, cfg.steps) == ("/data/mine", [7], 5)
    assert values == list(kl_weight.SPACE.values)
    trial = trial_config(cfg, kl_weight.SPACE, 0.1, seeds[0])
    assert (trial.output_dir, trial.seed) == ("/data/mine/trials/kl_weight=0.1,seed=7", 7)


def test_the_command_line_beats_the_file(tmp_path):
    _, seeds, cfg = loaded(tmp_path, MINE, "output_dir=/data/other", "seeds=[1,2]")
    assert (cfg.output_dir, seeds) == ("/data/other", [1, 2])
    assert loaded(tmp_path, MINE, "seed=3")[1] == [3]


def test_the_jobs_default_holds_where_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, seeds, cfg = loaded(tmp_path, "steps: 5\n")
    assert (cfg.output_dir, seeds) == (str(tmp_path / "runs" / "sweep_kl_weight"), [0])
    assert load_sweep(kl_weight.SPACE, None, {}, {"output_dir": "runs/x"})[2].output_dir == str(tmp_path / "runs" / "x")


@pytest.mark.parametrize(
    ("file", "space", "says"),
    [
        ("kl_weight: 1\n", kl_weight.SPACE, r"mine\.yaml sets kl_weight, which is swept"),
        ("supervision: {agreement: 0.5}\n", agreement.SPACE, r"sets supervision\.agreement, which is swept"),
        ("method: full\n", lora_rank.SPACE, "'method': 'full'.* does not go with a sweep over lora_rank"),
    ],
)
def test_a_file_that_contradicts_the_sweep_is_refused(tmp_path, file, space, says):
    with pytest.raises(UserError, match=says):
        loaded(tmp_path, file, space=space)


def test_a_file_may_say_what_the_sweep_fixes(tmp_path):
    assert loaded(tmp_path, "method: lora\n", space=lora_rank.SPACE)[2].method == "lora"


def test_lists_of_other_keys_are_not_swept():
    given = parse("", ["kl_weight=[0,1]", "seeds=[0,1]", "eval.against=[x]", "judge.labels=[hedges,answers]"]).overrides
    assert chosen_spaces((), given)[0].key == "kl_weight"
