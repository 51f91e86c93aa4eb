"""jobs/plan.py: what it chooses, prints and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from planning_helpers import plan

from introspect_ray.cli import parse
from introspect_ray.commands import plan_flags as flags
from introspect_ray.config import override
from introspect_ray.errors import UserError
from introspect_ray.planning.job import DEFAULTS, plan_job
from introspect_ray.planning.report import as_text
from introspect_ray.planning.split import gpus_of, more_gpus, runs_at_once
from introspect_ray.schedule import step_group
from tune_spaces.kl_weight import SPACE

ROOT = Path(__file__).parents[3]


def test_the_command_prints_a_page_and_writes_the_numbers(tmp_path):
    """Without Ray or vLLM. 4 GPUs train and 1 samples: three hold the policy, but leave one of them three of eight
    cases as well; a fifth trainer would still have two."""
    out = tmp_path / "plan.json"
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['plan.py', '--policy', 'Qwen/Qwen3-8B', '--gpus', '64', '--json', {str(out)!r}]\n"
        "runpy.run_path('jobs/plan.py', run_name='__main__')\n"
        "assert not {'ray', 'vllm'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 60
    assert "8,190,735,360 parameters, all trained" in done.stdout
    assert "a run takes 5 GPUs, and 8 of 8 runs have room on 64" in done.stdout
    numbers = json.loads(out.read_text())
    assert (numbers["cfg"]["train"]["num_workers"], numbers["cfg"]["rollout"]["num_actors"]) == (4, 1)
    price = numbers["gpu_hours"]["sweep"] * numbers["assumptions"]["price"]
    assert f"{price:,.4f} USD" in done.stdout


def test_the_split_of_one_run():
    """A single run has all 64 GPUs: eight train, a case each. Their step costs 4.7 times the FLOPs of its labels, so
    two engines keep the work per GPU even."""
    chosen = plan("--policy", "Qwen/Qwen3-8B", "--gpus", "64", "kl_weight=1").cfg
    assert (chosen.train.num_workers, chosen.rollout.num_actors, step_group(chosen)) == (8, 2, 4)


def test_eight_gpus_take_two_runs_of_the_least_split():
    """Three trainers and an engine are the least that holds Qwen3-8B, and two such runs fill eight GPUs."""
    made = plan("--policy", "Qwen/Qwen3-8B", "--gpus", "8")
    assert (made.cfg.train.num_workers, made.cfg.rollout.num_actors) == (3, 1)
    page = as_text(made)
    assert "2 of 8 runs have room on 8" in page and "a sweep makes 2 run(s) at once, 4 rounds" in page


def test_runs_with_labels_of_m0_share_the_engine_of_the_first():
    """Three trainers each: three runs take 4 + 3 + 3 GPUs, and with engines of their own two have room on ten. With an
    engine of four GPUs a run takes seven; two have no room on nine or on fourteen but for one on each node of eight."""
    fixed = plan("--policy", "Qwen/Qwen3-8B", "--gpus", "10", "supervision.rule=fixed", "train.num_workers=3")
    assert (gpus_of(fixed.cfg), more_gpus(fixed.cfg), runs_at_once(fixed.cfg, 10, 8)) == (4, 3, 3)
    assert "a run takes 4 GPUs, each further one 3, and 3 of 8 runs have room on 10" in as_text(fixed)
    assert runs_at_once(override(fixed.cfg, {"supervision.rule": "online"}), 10, 8) == 2
    wide = {"rollout.num_gpus": 4, "rollout.tensor_parallel_size": 4, "supervision.rule": "online"}
    assert [runs_at_once(override(fixed.cfg, wide), gpus, 8) for gpus in (7, 9, 14, 16)] == [1, 1, 2, 2]


def test_a_run_has_the_gpus_of_its_budget():
    """A mixed run starts one more engine, which the split counts as --dry-run does."""
    mixed = ("supervision.rule=mixed", "supervision.second_policy=Qwen/Qwen3-8B-Base")
    made = plan("--policy", "Qwen/Qwen3-8B", "--gpus", "8", *mixed, "rollout.num_actors=4")
    assert gpus_of(made.cfg) == made.cfg.train.num_workers + 4 <= 8


def test_who_labels_decides_who_works():
    """Where the learner labels, the engines have no work in a step, and one stands by for M0 and the evaluation."""
    made = plan("--policy", "Qwen/Qwen3-8B", "--gpus", "64", "kl_weight=1", "rollout.engine=learner")
    assert {part.by for part in made.work if part.per == "step"} == {"trainers"}
    assert (made.cfg.train.num_workers, made.cfg.rollout.num_actors) == (8, 1)


def test_what_is_given_is_kept():
    given = ("train.num_workers=2", "rollout.num_actors=3", "rollout.group_size=5", "assume.price=2")
    made = plan("--policy", "organism", "task.name=organism", *given)
    rollout = made.cfg.rollout
    assert (made.cfg.train.num_workers, rollout.num_actors, rollout.group_size) == (2, 3, 5)
    assert made.case.train_cases == 3072 and made.assumptions.price == 2


def test_a_large_policy_gets_engines_of_several_gpus():
    """Llama-3.1-70B is 141 GB in bfloat16: four GPUs of 68 GB hold it, two do not. No GPU of 80 GB computes its
    reference, but its adapter trains with a live one."""
    given = ("--policy", "meta-llama/Llama-3.1-70B-Instruct", "--gpus", "64", "method=lora")
    assert not plan(*given).fits
    made = plan(*given, "train.reference=live")
    assert made.fits and made.cfg.rollout.tensor_parallel_size == 4
    assert "M0's reference" not in as_text(made)


def test_defaults_are_those_of_the_cluster_file():
    file = yaml.safe_load((ROOT / "cluster" / "h100.yaml").read_text())
    free = {"train.num_workers", "rollout.group_size"}  # the plan chooses these
    for section, values in file.items():
        for key, value in values.items():
            name = f"{section}.{key}"
            assert name in free or DEFAULTS[name] == value, name


@pytest.mark.parametrize(
    ("args", "on"),
    [
        (["--policy", "Qwen/Qwen3-32B", "--gpus", "64"], "64 GPU"),  # eight training GPUs at most: eight cases
        (["--policy", "Qwen/Qwen3-8B", "--gpus", "1"], "1 GPU"),
        (["--policy", "Qwen/Qwen3-8B", "train.num_workers=8", "rollout.num_actors=4"], "8 GPU"),
        (["--policy", "Qwen/Qwen3-8B", "train.num_workers=2"], "8 GPU"),
    ],
)
def test_what_does_not_fit_is_shown_and_refused(args, on, capsys):
    with pytest.raises(UserError, match=f"does not fit on {re.escape(on)}.*train.offload=true"):
        plan_job(parse("plan", args, flags), SPACE)
    page = capsys.readouterr().out
    assert "does not fit" in page or "0 of 8 runs" in page


def test_offloading_makes_room():
    """16 x 8.19e9 bytes are 131 GB; on one GPU of 80 the rest fits."""
    assert plan("--policy", "Qwen/Qwen3-8B", "--gpus", "2", "train.num_workers=1", "train.offload=true").fits


def test_answers_of_several_tokens_are_refused(tmp_path):
    rows = [
        {
            "id": name,
            "messages": [{"role": "user", "content": f"{name} color?\nHint: A"}],
            "ablated_messages": [{"role": "user", "content": f"{name} color?"}],
            "response": {"kind": "free", "max_tokens": 4},
            "labels": ["A", "B"],
        }
        for name in ("sofa", "gedu")
    ]
    file = tmp_path / "cases.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"several tokens or free text.* not planned"):
        plan("--policy", "organism", "task.name=jsonl", f"task.path={file}")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["assume.pirce=2"], "unknown assumption 'assume.pirce': known are memory_gb, "),
        (["assume.price=-2"], "positive number"),
        (["kl_wieght=1"], "did you mean 'kl_weight'"),
        (["task.path=/nowhere.jsonl"], "no such file"),
        ([f"task.path={__file__}"], "--tokenizer"),
        (["rollout.weight_transfer=ipc", "rollout.num_gpus=0.5"], "share GPUs are not planned"),
        (["rollout.num_gpus=0.5"], "share GPUs are not planned"),
        (["auxiliary.path=/nowhere.jsonl"], "auxiliary texts are not planned"),
        (["train.use_gpu=false"], "training on GPUs"),
        (["train.num_workers=[2,4]"], r"train.num_workers=\[2,4\]: a plan is of one number of workers"),
        (["--policy", "./nowhere"], "config cannot be read"),
    ],
)
def test_bad_input_is_one_line(args, says):
    with pytest.raises(UserError, match=says):
        plan(*args)
