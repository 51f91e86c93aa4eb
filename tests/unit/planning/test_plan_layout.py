"""GPUs and seconds of a run and of a sweep, and the cases a plan counts."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from planned import HEAD, SHAPE, WORK, A, config, plan

from introspect_ray.cli import parse
from introspect_ray.commands import plan_flags as flags
from introspect_ray.config import TaskConfig, load_config
from introspect_ray.planning.job import plan_job
from introspect_ray.planning.layout import Setting, balanced_engines, fixed_seconds, make_layout
from introspect_ray.planning.work import assumed_work, measured_work
from introspect_ray.records import Explanation, TokenizedCase
from introspect_ray.runs.preflight import prepare
from tune_spaces.kl_weight import SPACE

SETTING = Setting(SHAPE, WORK, A, "device", 8, 8)


@pytest.mark.parametrize("rule", ["online", "mixed"])
def test_a_run_has_the_gpus_of_its_budget(rule, capsys):
    """A mixed run starts one more engine: what the budget counts for it, the cost and the splits count too."""
    mixed = ["supervision.second_policy=Qwen/Qwen3-8B-Base"] if rule == "mixed" else []
    args = parse("plan", ["--policy", "Qwen/Qwen3-8B", "--gpus", "8", f"supervision.rule={rule}", *mixed], flags)
    plan_job(args, SPACE)
    said = capsys.readouterr().out
    (budget,) = re.findall(r"^budget: .*, (\d+) GPUs$", said, re.MULTILINE)
    assert f"on its {budget} GPUs" in said and f"on {budget} GPUs)" in said
    assert int(budget) >= 4  # three train, one samples
    made = plan("--policy", "Qwen/Qwen3-8B", "--gpus", "8", f"supervision.rule={rule}", *mixed)
    assert made.chosen.gpus == int(budget) and max(layout.gpus for layout in made.layouts) <= 8
    assert {row.layout.gpus for row in made.scaled} == {row.gpus for row in made.scaled}


def test_a_configs_own_engine_gpus_and_transfer_are_planned():
    """rollout.num_gpus=1 is what cluster/h100.yaml gives; --transfer is the config's rollout.weight_transfer."""
    made = plan("--policy", "Qwen/Qwen3-8B", "rollout.num_gpus=1")
    assert made.setting.transfer == "device" and made.chosen.times.rendezvous
    host = plan("--policy", "Qwen/Qwen3-8B", "--transfer", "host")
    assert host.chosen.cfg.rollout.weight_transfer == "object_store" and not host.chosen.times.rendezvous


def test_seconds_outside_the_steps_by_hand():
    """Two engines. Each labels half of the 10,532 training cases and of the 3,510 others and explains the latter, 1,755
    in seven rounds of 256, 9 tokens each; after training the others again. M0's reference is computed meanwhile: with
    four engines it takes longer than they do."""
    flops = 0.4 * 989e12
    case = (
        2 * 36 * SHAPE.layer_matrices * 176.2 + 4 * 36 * 4096 * (162.6**2 + 157.6**2 - 144**2) / 2 + 2 * 2 * HEAD
    ) / flops + 2 * 5e-4
    asked = 2 * 36 * SHAPE.layer_matrices * 177.6 / flops + 5e-4
    evaluated = 1755 * (case + asked) + 7 * 9 * 36 * 8e-4  # launches, longer than 2 bytes a parameter from memory
    shared, own = fixed_seconds(SETTING, config(), 2, 1)
    assert own == pytest.approx(60 + evaluated)
    assert shared == pytest.approx(120 + 5266 * case + evaluated)
    reference = 2 * 36 * SHAPE.layer_matrices * 168.6 * 10532 / flops
    assert fixed_seconds(SETTING, config(), 4, 1)[0] == pytest.approx(120 + reference)
    quarter = 2633 * case + 877.5 * (case + asked) + 4 * 9 * 36 * 8e-4
    live = config(method="lora", train__reference="live")
    assert fixed_seconds(SETTING, live, 4, 1)[0] == pytest.approx(120 + quarter)


def test_a_sweep_on_one_set_of_gpus_starts_once():
    """Eight trials: what they share once, and eight times the rest; side by side all of it is paid by each run."""
    layout = make_layout(SETTING, config(), 3, 1, 1)
    shared, own = fixed_seconds(SETTING, layout.cfg, 1, 1)
    steps = 1500 * layout.pace.step + layout.times.gather + layout.times.deliver
    assert layout.run_seconds == pytest.approx(shared + steps + own)
    assert layout.in_turn_seconds(8) == pytest.approx(shared + 8 * (steps + own))
    assert (layout.gpus, layout.at_once, layout.sweep_seconds) == (4, 2, 4 * layout.run_seconds)


def test_engines_in_balance_by_hand():
    """At lag >= 1 a cycle is publish + update for the trainers, deliver + labelling for an engine, and publish as well
    where that is a rendezvous: then it counts on neither side."""
    layout = make_layout(SETTING, config(), 3, 1, 1)
    times = layout.times
    assert balanced_engines(layout) == pytest.approx(8 * times.label_case / (times.update - times.deliver))
    stored = replace(layout, times=replace(times, rendezvous=False))
    room = times.gather + times.update - times.deliver
    assert balanced_engines(stored) == pytest.approx(8 * times.label_case / room)


def test_assumed_cases_are_split_and_limited_as_the_task_says():
    """A quarter of 14,042 questions is 3,510.5 and holds out 3,510, a tenth 1,404. Limits cut either side."""
    for task, counts in (
        (TaskConfig(), (10_532, 3_510)),
        (TaskConfig(test_fraction=0.1), (12_638, 1_404)),
        (TaskConfig(train_cases=500, test_cases=100), (500, 100)),
    ):
        work = assumed_work(A, task)
        assert (work.train_cases, work.test_cases) == counts


def test_counted_cases_by_hand():
    """x = 1 2 3, x∖C = 1 3, q = 1 2 4 5: with e = 7 9 the tree has 1 2 3, 3, 4 5 7 (the last token of e needs no node);
    with e = 7 8 6 9 two more, the longest tree there is."""
    explanations = {Explanation(False, "A"): (7, 9), Explanation(True, "B"): (7, 8, 6, 9)}
    case = TokenizedCase("a", ("A", "B"), (10, 11), (1, 2, 3), (1, 3), (1, 2, 4, 5), explanations)
    work = measured_work("by hand", [case], 64, 5, 16)
    assert (work.tree, work.longest_tree, work.both, work.targets) == (7, 9, 4, 2)
    assert (work.longest, work.train_cases, work.test_cases) == (64, 1, 5)


def test_cases_and_longest_sequence_are_those_of_the_dry_run(tmp_path):
    """The longest case is a held-out one, more than twice as long as what is trained on."""

    def row(name, count):
        x, ablated = ({"role": "user", "content": f"{'sofa color? ' * count}{end}"} for end in ("\nHint: C", ""))
        meta = "How would the answer change without the hint?"
        case = {
            "id": name,
            "messages": [x],
            "ablated_messages": [ablated],
            "meta_question": meta,
            "labels": list("ABCD"),
        }
        return json.dumps(case) + "\n"

    (tmp_path / "train.jsonl").write_text(row("short", 1) + row("longer", 2))
    (tmp_path / "test.jsonl").write_text(row("longest", 20))
    task = {"task.name": "jsonl", "task.path": f"{tmp_path}/train.jsonl", "task.test_path": f"{tmp_path}/test.jsonl"}
    run = {**task, "rollout.engine": "transformers", "output_dir": str(tmp_path / "run"), "policy": "organism"}
    real = prepare(load_config(None, run))
    work = plan("--policy", "organism", *(f"{key}={value}" for key, value in task.items())).setting.work
    assert (work.train_cases, work.test_cases) == (len(real.train), len(real.test)) == (2, 1)
    assert work.longest == real.max_model_len > 2 * real.train.longest_sequence
