"""jobs/plan.py as a command, and what it chooses, counts and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from planned import plan

from introspect_ray.cli import parse
from introspect_ray.commands import plan_flags as flags
from introspect_ray.errors import UserError
from introspect_ray.planning.job import DEFAULTS, plan_job
from introspect_ray.planning.report import as_text
from tune_spaces.kl_weight import SPACE

ROOT = Path(__file__).parents[3]


def test_the_command_prints_the_plan_without_torch_or_ray(tmp_path):
    out = tmp_path / "plan.json"
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['plan.py', '--policy', 'Qwen/Qwen3-8B', '--gpus', '64', '--json', {str(out)!r}]\n"
        "runpy.run_path('jobs/plan.py', run_name='__main__')\n"
        "assert not {'torch', 'ray', 'transformers', 'vllm'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for said in ("trials: 8", "budget: ", "placement: ", "8,190,735,360 parameters", "<- chosen", "assumptions"):
        assert said in done.stdout
    numbers = json.loads(out.read_text())
    assert max(abs(row["error"]) for row in numbers["scaling"]) < 0.03
    assert [row["gpus"] for row in numbers["scaling"]][:: 2] == [8, 16, 32, 64, 128, 256, 512, 1024]  # fmt: skip
    chosen, simulated = numbers["chosen"], numbers["simulated"]
    assert chosen["predicted"]["step"] == pytest.approx(simulated["step"], rel=0.03)
    assert chosen["sweep_usd"] == pytest.approx(chosen["sweep_seconds"] / 3600 * 64 * 6.88)


def test_the_example_of_the_docs_is_what_the_command_prints(capsys):
    """After a change: python jobs/plan.py --policy Qwen/Qwen3-8B --gpus 64 | sed -n '/^---$/,$p'"""
    plan_job(parse("plan", ["--policy", "Qwen/Qwen3-8B", "--gpus", "64"], flags), SPACE)
    said = capsys.readouterr().out
    example = said[said.index("\n---\n") + 1 :]
    assert f"```\n{example}```\n" in (ROOT / "docs" / "plan.md").read_text()


def test_defaults_are_those_of_the_cluster_file():
    file = yaml.safe_load((ROOT / "cluster" / "h100.yaml").read_text())
    free = {"train.num_workers", "rollout.group_size"}  # the plan chooses these
    for section, values in file.items():
        for key, value in values.items():
            name = f"{section}.{key}"
            assert name in free or DEFAULTS[name] == value, name


def test_a_plan_where_the_learner_labels():
    """Its step is labelling and update; the engines stand by for M0's labels and the evaluation."""
    made = plan("--policy", "Qwen/Qwen3-8B", "--gpus", "16", "rollout.engine=learner")
    times, pace = made.chosen.times, made.chosen.pace
    assert pace.step == times.label_own + times.update and pace.engine_idle == 1
    assert made.simulated.pace.step == pytest.approx(pace.step)
    assert "trees of x and x∖C, by the trainers" in as_text(made)
    counted = plan("--policy", "organism", "task.name=organism", "rollout.engine=learner").setting.work
    assert counted.both < counted.prompt + counted.ablated and counted.both < counted.tree


def test_what_is_given_is_kept_and_counted():
    small = plan("--policy", "organism", "task.name=organism", "train.num_workers=2", "rollout.num_actors=3")
    assert (small.chosen.trainers, small.chosen.engines) == (2, 3)
    assert small.setting.work.train_cases == 3072 and "3072 training cases" in small.setting.work.source
    assert plan("--policy", "organism", "assume.price=2").setting.assumed.price == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["assume.pirce=2"], "did you mean 'assume.price'"),
        (["assume.price=-2"], "positive number"),
        (["--gpus", "1"], "--gpus 1"),
        (["kl_wieght=1"], "did you mean 'kl_weight'"),
        (["task.path=/nowhere.jsonl"], "--tokenizer"),
        (["--policy", "Qwen/Qwen3-32B", "--gpus", "64"], "does not train on 8 GPU"),
        (["train.num_workers=8", "rollout.num_actors=4"], "--gpus is 8"),
        (["rollout.weight_transfer=ipc", "rollout.num_gpus=0.5"], "not modelled"),
        (["rollout.num_gpus=0.5"], r"set rollout\.num_gpus=1, or leave it out"),
        (["rollout.num_gpus=2"], r"set rollout\.num_gpus=1, or leave it out"),
        (["train.use_gpu=false"], "training on GPUs"),
        (["--transfer", "device", "method=lora"], "method=lora sends its adapter alone"),
    ],
)
def test_bad_input_is_one_line(args, says):
    with pytest.raises(UserError, match=says):
        plan(*args)
