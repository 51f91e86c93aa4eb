"""Tokens, FLOPs and GPU-hours by hand, and the cases that a plan counts."""

from __future__ import annotations

import json

import pytest
from planning_helpers import CASE, HEAD, MATRICES, SHAPE, A, config, plan

from introspect_ray.config import TaskConfig, load_config
from introspect_ray.planning.work import assumed_sizes, counted_sizes, flops_per, work_parts
from introspect_ray.records import Explanation, TokenizedCase
from introspect_ray.runs.preflight import prepare


def flops(**changes: object) -> dict[str, float]:
    """FLOPs of each part of the work, by its name."""
    return {part.what: part.flops for part in work_parts(SHAPE, CASE, config(**changes))}


def forward(tokens: float) -> float:
    """2 per weight and token, and QKᵀ and AV (4 per token pair and query width)."""
    return 2 * 36 * MATRICES * tokens + 4 * 36 * 4096 * tokens**2


def test_a_step_by_hand():
    """Eight cases of 199.6 tokens with rows of logits at x, x∖C and 9 target tokens; their labels on 168.6 tokens."""
    step = flops()
    body, rows = 8 * forward(199.6), 8 * 2 * HEAD * 11
    assert step["training: forward"] == pytest.approx(body + rows)
    assert step["training: backward"] == pytest.approx(2 * (body + rows))
    assert step["training: activations again"] == pytest.approx(body)
    assert step["training: M0's distribution"] == pytest.approx(8 * 2 * 2 * HEAD)
    assert step["labels: x and x∖C"] == pytest.approx(8 * (forward(168.6) + 2 * 2 * HEAD))


def test_what_a_config_changes():
    """A frozen base needs gradients of inputs alone; a live reference is one more forward pass; fixed labels are made
    once; a mixed run labels all cases with two models."""
    full, lora = flops(), flops(method="lora", train__reference="live", train__activation_checkpointing="none")
    assert lora["training: backward"] == lora["training: forward"] == full["training: forward"]
    assert lora["training: M0's distribution"] == pytest.approx(8 * (forward(199.6) + 4 * HEAD))
    assert not {"training: activations again", "M0: cached reference"} & lora.keys()
    fixed = flops(supervision__rule="fixed")
    mixed = flops(supervision__rule="mixed", supervision__second_policy="Qwen/Qwen3-8B-Base")
    assert "labels: x and x∖C" not in fixed.keys() | mixed.keys()
    more = mixed["M0: labels, explanations"] - fixed["M0: labels, explanations"]
    assert more == pytest.approx(14_042 * (forward(168.6) + 4 * HEAD))


def test_a_run_and_a_sweep_by_hand():
    """3,510 held-out cases are labelled and explained per run and by M0; M0's labels of the 10,532 training cases and
    its reference are one pass over them."""
    parts = work_parts(SHAPE, CASE, config())
    pair, explained = forward(168.6) + 4 * HEAD, forward(177.6 + 9) + 9 * 2 * HEAD
    step = sum(part.flops for part in parts if part.per == "step")
    run = 1500 * step + 3510 * (pair + explained)
    shared = 3510 * (pair + explained) + 10_532 * pair
    total = flops_per(parts, steps=1500, trials=8)
    assert total["step"] == pytest.approx(step)
    assert total["run"] == pytest.approx(run)
    assert total["sweep"] == pytest.approx(8 * run + shared)


def test_cost_is_work_at_the_assumed_utilisation():
    made = plan("--policy", "Qwen/Qwen3-8B", "assume.peak_tflops=500", "assume.utilisation=0.5", "steps=10")
    work = flops_per(made.work, steps=10, trials=8)
    assert made.gpu_hours["sweep"] == pytest.approx(work["sweep"] / (250e12 * 3600))


def test_assumed_cases_are_split_and_limited_as_the_task_says():
    """A quarter of 14,042 questions is 3,510.5 and holds out 3,510, a tenth 1,404. Limits cut either side."""
    for task, counts in (
        (TaskConfig(), (10_532, 3_510)),
        (TaskConfig(test_fraction=0.1), (12_638, 1_404)),
        (TaskConfig(train_cases=500, test_cases=100), (500, 100)),
    ):
        case = assumed_sizes(A, task)
        assert (case.train_cases, case.test_cases) == counts


def test_counted_cases_by_hand():
    """x = 1 2 3, x∖C = 1 3, q = 1 2 4 5: with e = 7 9 the tree has 1 2 3, 3, 4 5 7 (the last token of e needs no node);
    with e = 7 8 6 9 two more, the longest tree there is."""
    explanations = {Explanation(False, "A"): (7, 9), Explanation(True, "B"): (7, 8, 6, 9)}
    case = TokenizedCase("a", ("A", "B"), ((10,), (11,)), (1, 2, 3), (1, 3), (1, 2, 4, 5), explanations)
    sizes = counted_sizes("by hand", [case], longest=64, test_cases=5)
    assert (sizes.tree, sizes.longest_tree, sizes.pair, sizes.question, sizes.target) == (7, 9, 4, 4, 2)
    assert (sizes.longest, sizes.train_cases, sizes.test_cases) == (64, 1, 5)


def test_cases_and_longest_sequence_are_those_of_the_run(tmp_path):
    """The longest case is a held-out one, more than twice as long as what is trained on."""

    def row(name: str, count: int) -> str:
        x, ablated = ({"role": "user", "content": f"{'sofa color? ' * count}{end}"} for end in ("\nHint: C", ""))
        meta = "How would the answer change without the hint?"
        turns = {"messages": [x], "ablated_messages": [ablated], "meta_question": meta}
        return json.dumps({"id": name, **turns, "labels": list("ABCD")}) + "\n"

    (tmp_path / "train.jsonl").write_text(row("short", 1) + row("longer", 2))
    (tmp_path / "test.jsonl").write_text(row("longest", 20))
    task = {"task.name": "jsonl", "task.path": f"{tmp_path}/train.jsonl", "task.test_path": f"{tmp_path}/test.jsonl"}
    run = {**task, "rollout.engine": "transformers", "output_dir": str(tmp_path / "run"), "policy": "organism"}
    real = prepare(load_config(None, run))
    case = plan("--policy", "organism", *(f"{key}={value}" for key, value in task.items())).case
    assert (case.train_cases, case.test_cases) == (len(real.train), len(real.test)) == (2, 1)
    assert case.longest == real.max_model_len > 2 * real.train.longest_sequence
