"""The parts of a configuration and their order, and every config file that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from introspect_ray.cli import parse, parse_override
from introspect_ray.config import RunConfig, field_names, load_config
from introspect_ray.errors import UserError

REPO = Path(__file__).parents[3]
SHIPPED = [
    *REPO.glob("introspect_ray/config/presets/*.yaml"),
    *REPO.glob("docs/*.yaml"),
    REPO / "cluster" / "h100.yaml",
]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_loads(file):
    load_config(str(file), {})


def test_later_layers_win(tmp_path):
    """Defaults < preset of the task < a job's defaults < file < overrides; a section is merged, not replaced."""
    (tmp_path / "mine.yaml").write_text("steps: 7\nkl_weight: 3\nsupervision: {agreement: 0.9}\n")
    cfg = load_config(str(tmp_path / "mine.yaml"), {"kl_weight": 5, "supervision.rule": "online"})
    assert (cfg.batch_size, cfg.steps, cfg.kl_weight) == (32, 7, 5)  # preset, file, override
    assert (cfg.supervision.rule, cfg.supervision.agreement) == ("online", 0.9)
    job = load_config(str(tmp_path / "mine.yaml"), {"kl_weight": 5}, {"batch_size": 6, "steps": 6, "kl_weight": 6})
    assert (job.batch_size, job.steps, job.kl_weight) == (6, 7, 5)
    assert load_config(None, {"task.name": "jsonl", "task.path": "x"}).learning_rate == 1e-5  # no preset: the default


def test_the_contract_of_override_names():
    """The names that outsiders may rely on."""
    contract = (
        "output_dir policy task.name task.path kl_weight learning_rate steps batch_size seed lag method lora_rank "
        "supervision.rule supervision.agreement supervision.mixing_ratio rollout.engine rollout.num_actors "
        "train.num_workers tracking.uri"
    )
    assert set(contract.split()) <= set(field_names())
    assert RunConfig().train.use_gpu is False  # any task runs on a machine without a GPU unless told otherwise
    assert load_config(None, {"task.name": "hint_mmlu"}).train.use_gpu is False


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=1e-5", 1e-5), ("a=[0,1e-3,1]", [0, 1e-3, 1]), ("a=null", None), ("a=true", True), ("a=runs/x", "runs/x")],
)
def test_override_values(text, value):
    """YAML 1.1 reads 1e-5 as a string; a list of such strings would sort as text."""
    assert parse_override(text) == ("a", value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("task.changed=not: {label} #1", "not: {label} #1"),
        ("task.changed={label} it is", "{label} it is"),
        ("task.changed='not: {label}'", "not: {label}"),
        ("task.changed=null", None),
        ("judge.second.labels=[yes]", [True]),  # no text but a list of texts: YAML
        ("judge.second.model=1e5", "1e5"),
        ("policy=[a,b]", ["a", "b"]),  # the values of a sweep
    ],
)
def test_a_text_stands_for_itself(text, value):
    assert parse_override(text)[1] == value


@pytest.mark.parametrize("overrides", [["kl_weight=1", "kl_weight.x=1"], ["task=organism", "task.path=x"], ["=1"]])
def test_contradicting_overrides_are_refused(overrides):
    with pytest.raises(UserError):
        load_config(None, parse("job", overrides).overrides)


def test_a_policy_given_by_a_relative_path_is_the_same_for_workers_elsewhere(tmp_path, monkeypatch):
    """Ray's workers run in folders of their own; names of bundled and hub policies are no paths, whatever lies here."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "organism"):
        (tmp_path / name).mkdir()
    keys = {"reference_policy": "mine", "judge.second.kind": "llm", "judge.second.policy": "mine"}
    more = load_config(None, keys)
    assert more.reference_policy == more.judge.second.policy == str(tmp_path / "mine") and more.judge.policy is None
    cfg = load_config(None, {"policy": "mine", "supervision.second_policy": "organism:second"})
    assert cfg.policy == str(tmp_path / "mine") and cfg.supervision.second_policy == "organism:second"
    assert load_config(None, {}).policy == "organism"
    assert load_config(None, {"policy": "Qwen/Qwen3-8B"}).policy == "Qwen/Qwen3-8B"


def test_what_the_rollout_actors_run():
    assert RunConfig().rollout.served_by == "vllm"
    learner = load_config(None, {"rollout.engine": "learner", "rollout.serving_engine": "transformers"})
    assert learner.rollout.served_by == "transformers"


@pytest.mark.parametrize("value", [0, True, "two", [2], [2, 1], [2, 2], [0, 2], [1, 2, 3]])
def test_workers_are_a_number_or_least_and_most(value):
    with pytest.raises(UserError, match=r"train\.num_workers': expected a number of workers, or \[min, max\]"):
        load_config(None, {"train.num_workers": value})
    elastic = load_config(None, {"train.num_workers": [2, 8], "batch_size": 8}).train
    assert (elastic.elastic, elastic.min_workers, elastic.max_workers) == (True, 2, 8)
    assert RunConfig.model_validate({"train": elastic.model_dump(mode="json"), "batch_size": 8}).train == elastic


def test_a_run_on_a_cluster_writes_checkpoints_unless_told_otherwise(monkeypatch):
    """None is lost on one machine, where a part that dies is started again beside the others."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def every(**flat: object) -> int | None:
        return load_config(None, {key.replace("__", "."): value for key, value in flat.items()}).train.checkpoint_every

    assert every() == 0
    assert every(wait_for_nodes=True) == every(ray_address="auto") == 50
    assert every(wait_for_nodes=True, train__checkpoint_every=0) == 0
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert (every(), every(train__checkpoint_every=7)) == (50, 7)
