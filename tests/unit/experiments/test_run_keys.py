"""From studies to runs: keys by content, policies of other runs, and trials that share a set-up."""

from __future__ import annotations

from pathlib import Path

import pytest

from introspect_ray.config import load_config, override
from introspect_ray.errors import UserError
from introspect_ray.experiments.plan import check_files, plan, run_key
from introspect_ray.experiments.protocol import File, Organism, Study, Trained
from introspect_ray.experiments.settings import load_settings
from introspect_ray.runs.search_space import by_setup, grid, shared_config, space_of

SETTINGS = load_settings()


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    file = tmp_path / "cases.jsonl"
    file.write_text("{}\n")
    return file


def config(**flat):
    return load_config(overrides={key.replace("__", "."): value for key, value in flat.items()})


def key(cfg, known=None) -> str:
    return run_key(cfg, known or {}, "train")


def test_a_key_is_of_what_is_computed(tmp_path, cases):
    """Neither folders nor the tracker count; any other key does, and the content of the case file, not its place."""
    base = config(task__name="jsonl", task__path=str(cases), policy="Qwen/Qwen3-8B", output_dir=str(tmp_path / "a"))
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text("{}\n")
    moved = {"output_dir": str(tmp_path / "b"), "cache_dir": "/c", "tracking.backend": "none"}
    assert key(base) == key(override(base, {**moved, "task.path": str(elsewhere)}))
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": 1}\n')
    changes = [{"kl_weight": 0.5}, {"seed": 1}, {"task.path": str(other)}, {"policy": "Qwen/Qwen3-4B"}]
    assert len({key(base), *(key(override(base, change)) for change in changes)}) == 5
    assert run_key(base, {}, "evaluate") != key(base)


def test_a_policy_that_a_run_trains_counts_by_that_run():
    """Its place may be another folder: what it will be follows from the run."""
    known = {"/a/policy": "1", "/b/policy": "1", "/c/policy": "2"}
    keys = [key(config(reference_policy=folder), known) for folder in known]
    assert keys[0] == keys[1] != keys[2]


def test_a_file_of_the_settings_that_is_not_there_is_refused(tmp_path, cases):
    study = Study("own", None, {"task.name": "jsonl", "task.path": str(cases)})
    check_files(plan([study], SETTINGS, tmp_path), tmp_path)
    cases.unlink()
    with pytest.raises(UserError, match=r"task\.path=.*cases\.jsonl of study own is not there"):
        check_files(plan([study], SETTINGS, tmp_path), tmp_path)


def test_a_study_that_uses_a_trained_policy_comes_later(tmp_path):
    first = Study("first", None, {}, ({"kl_weight": 1.0}, {"kl_weight": 0.0}), (0, 1))
    second = Study("second", None, {"reference_policy": Trained("first", (("kl_weight", 1.0),))}, ({},), (0, 1))
    runs = plan([first, second], SETTINGS, tmp_path)
    assert [(run.study.name, run.seed, run.stage) for run in runs] == [
        ("first", 0, 0), ("first", 1, 0), ("first", 0, 0), ("first", 1, 0), ("second", 0, 1), ("second", 1, 1),
    ]  # fmt: skip
    assert [run.cfg.reference_policy for run in runs[4:]] == [f"{run.cfg.output_dir}/policy" for run in runs[:2]]
    assert len({run.cfg.output_dir for run in runs}) == 6
    with pytest.raises(UserError, match="trains at"):
        plan([second], SETTINGS, tmp_path)


def test_figures_share_runs(tmp_path):
    """The same config from another study, with the value of the settings given as a point, is the same run."""
    rate = load_config().learning_rate
    one = plan([Study("a", None, {"kl_weight": 1.0})], SETTINGS, tmp_path)
    two = plan([Study("b", None, {}, ({"kl_weight": 1.0, "learning_rate": rate},))], SETTINGS, tmp_path)
    assert one[0].cfg.output_dir == two[0].cfg.output_dir


def test_an_organism_gives_its_files(tmp_path):
    organism = Organism("hint", 1)
    (run,) = plan([Study("a", organism, {"auxiliary.path": File("aux_chats.jsonl")})], SETTINGS, tmp_path)
    folder = tmp_path / "organisms" / "hint-w1-s0-qwen3"
    assert (run.cfg.policy, run.cfg.task.path) == (f"{folder}/policy", f"{folder}/train.jsonl")
    assert run.cfg.auxiliary.path == f"{folder}/aux_chats.jsonl"


def test_a_real_model_needs_no_organism(tmp_path):
    (tmp_path / "mine.yaml").write_text("kinds: {hint: {policy: Qwen/Qwen3-8B, task: {name: hint_mmlu}}}\n")
    settings = load_settings(str(tmp_path / "mine.yaml"))
    (run,) = plan([Study("a", Organism("hint", 2), {})], settings, tmp_path)
    assert (run.cfg.policy, run.cfg.task.name, run.cfg.task.path) == ("Qwen/Qwen3-8B", "hint_mmlu", None)
    assert len(settings.headline("hint")) == 1 and len(settings.headline("cued")) == 5


def test_trials_that_differ_in_swept_keys_share_a_set_up(tmp_path):
    base = config(output_dir=str(tmp_path))
    same = [
        override(base, change)
        for change in ({"kl_weight": 0.0}, {"supervision.rule": "online", "seed": 3}, {"steps": 7, "output_dir": "/b"})
    ]
    apart = [
        override(base, change) for change in ({"method": "lora"}, {"task.test_cases": 5}, {"policy": "organism:second"})
    ]
    assert [len(group) for group in by_setup([same[0], apart[0], *same[1:], *apart[1:]])] == [3, 1, 1, 1]


def test_a_set_up_serves_the_trial_that_asks_for_most():
    base = config(supervision__second_policy="organism:second")
    mixed, ranked = override(base, {"supervision.rule": "mixed"}), override(base, {"lora_rank": 64})
    shared = shared_config([base, ranked, mixed])
    assert (shared.supervision.rule, shared.lora_rank) == ("mixed", 64)
    assert shared_config([base]) == base


def test_a_joint_grid_is_every_combination_with_every_seed(tmp_path):
    spaces = (space_of("kl_weight"), space_of("learning_rate"))
    trials = grid(config(output_dir=str(tmp_path)), spaces, [[0, 1], [0.001, 0.003]], [5, 6])
    assert [tuple(trial.point.values()) for trial in trials] == [
        (0, 0.001, 5), (0, 0.001, 6), (0, 0.003, 5), (0, 0.003, 6),
        (1, 0.001, 5), (1, 0.001, 6), (1, 0.003, 5), (1, 0.003, 6),
    ]  # fmt: skip
    assert trials[2].cfg.output_dir == f"{tmp_path}/trials/kl_weight=0,learning_rate=0.003,seed=5"
    assert (trials[2].cfg.kl_weight, trials[2].cfg.learning_rate, trials[2].cfg.seed) == (0, 0.003, 5)
