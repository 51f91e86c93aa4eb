"""The Python API: the examples in its docstrings run, on real Ray, and do what they say."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

import introspect_ray
from introspect_ray import UserError, evaluate, load_config, sweep, train
from introspect_ray.scores.summary import check_summary

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def run_example(function) -> dict:
    """Execute the example in a docstring and compare its values with those printed there; returns its variables."""
    variables: dict = {}
    examples = doctest.DocTestParser().get_examples(function.__doc__)
    assert examples, f"{function.__name__} has no example"
    for example in examples:
        if example.want:  # compared by hand: runs print their progress, which doctest would take for the value
            assert repr(eval(example.source, variables)) == example.want.strip()
        else:
            exec(example.source, variables)
    return variables


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_load_config():
    run_example(load_config)


def test_train(tmp_path: Path):
    ran = run_example(train)
    check_summary(ran["summary"])
    assert json.loads((tmp_path / "runs" / "first" / "summary.json").read_text()) == ran["summary"]
    with pytest.raises(UserError, match="output_dir"):
        train(ran["config"])
    assert train(ran["config"], {"kl_weight": 0.1}, resume=True) == ran["summary"]  # finished: nothing runs


def test_sweep(tmp_path: Path):
    run_example(sweep)
    written = json.loads((tmp_path / "runs" / "two" / "sweep.json").read_text())
    assert [row["kl_weight"] for row in written["rows"]] == [row["kl_weight"] for row in written["aggregate"]] == [0, 1]


def test_evaluate_leaves_a_callers_own_ray_running(tmp_path: Path):
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        ran = run_example(evaluate)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert json.loads((tmp_path / "runs" / "scores" / "evaluation.json").read_text()) == ran["scores"]


def test_bad_input_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    config = load_config()
    for call in (
        lambda: train(config, {"kl_wieght": 1}),
        lambda: sweep(config, "policy", ["a"]),
        lambda: sweep(config, "lag", []),
        lambda: evaluate(config, {"eval.policy": "/nowhere"}),
    ):
        with pytest.raises(UserError):
            call()


def test_names():
    assert introspect_ray.train is train
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        introspect_ray.nothing  # noqa: B018
