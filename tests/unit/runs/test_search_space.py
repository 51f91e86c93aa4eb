"""What a sweep runs: its values, seeds and folders, from the command line and from a config file."""

from __future__ import annotations

from pathlib import Path

import pytest

from introspect_ray.cli import parse
from introspect_ray.errors import UserError
from introspect_ray.runs.search_space import chosen_spaces, grid, load_grid, load_sweep, shown_name, trial_config
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


def trials(*overrides: str, names: tuple[str, ...] = ()) -> list[dict]:
    given = parse("", [*overrides]).overrides
    spaces = chosen_spaces(names, given)
    values, seeds, cfg = load_grid(spaces, None, given, {"output_dir": "/x"})
    return [dict(trial.point) for trial in grid(cfg, spaces, values, seeds)]


def test_a_named_sweep_takes_values_of_its_own_key_and_further_keys():
    assert [one["kl_weight"] for one in trials("kl_weight=[0,2]", names=("lambda",))] == [0, 2]
    both = trials("learning_rate=[1e-3,1e-2]", "kl_weight=[1]", names=("lambda",))
    assert both == [{"kl_weight": 1, "learning_rate": rate, "seed": 0} for rate in (1e-3, 1e-2)]
    assert len(trials(names=("lambda",))) == 8  # the paper's


def test_drawn_values_are_the_same_each_time_and_in_their_bounds():
    def drawn(*more: str) -> list[dict]:
        return trials("kl_weight=loguniform(1e-3,10)", "learning_rate=[1e-3,1e-2]", "sweep.samples=5", *more)

    made = drawn()
    assert made == drawn() != drawn("sweep.seed=1")
    assert len(made) == 10 and len({one["kl_weight"] for one in made}) == 5
    assert all(1e-3 <= one["kl_weight"] <= 10 for one in made)
    assert [shown_name(one) for one in made] == [shown_name(one) for one in drawn()]
    assert len({shown_name(one) for one in made}) == 10  # each has a folder of its own
    few = trials("batch_size=randint(3,5)", "sweep.samples=20")
    assert sorted(one["batch_size"] for one in few) == [3, 4]  # drawn again: the same trial
    with pytest.raises(UserError, match=r"^kl_weight=loguniform\(0,1\): "):
        trials("kl_weight=loguniform(0,1)")


def test_the_text_of_a_key_is_no_distribution():
    assert trials("supervision.rule=[fixed,online]")[0]["rule"] == "fixed"
    with pytest.raises(UserError, match="no key takes a list"):
        trials("policy=mine(1,2)")
