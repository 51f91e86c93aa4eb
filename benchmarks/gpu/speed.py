"""Step time and memory of the learner beside the loops of loops.py, on the same cases, M0 and weights.

All take the same steps: first a pass that is not timed, in which kernels are compiled and memory is taken, then the
timed ones. The losses must agree. `useful_tflops` are the products that a step needs: of every token of the trees, of
the pairs that see each other and of the rows that are read, forward once and backward twice; `share` is their rate over
what this device reaches on large matrices of the same type.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.loops import HOWS, PlainLoop
from benchmarks.gpu.setting import Setting, labels_of, one_rank, pairs_of
from introspect_ray.records import TokenizedCase
from introspect_ray.training.learner import Learner
from introspect_ray.training.packing import PackedBatch, pack
from introspect_ray.training.prompt_tree import ONE_TOKEN, build_tree
from introspect_ray.training.reference import build_reference

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # of the loss, relative
ADAM_BYTES = 16  # per weight: itself, its gradient and two moments, in float32
Step = Callable[[Sequence[TokenizedCase], Sequence[Any]], float]


def measure(setting: Setting) -> dict[str, Any]:
    """{"ours", "padded", ...: {"step_s", "peak_bytes", "loss"}, "ratio": the fastest other loop's seconds over ours,
    "share", ...}; "ok": whether the losses agree."""
    cases = setting.cases(setting.batch * setting.steps, setting.policy)
    rows = {"ours": _ours(setting, cases)}
    for how in HOWS:
        loop = PlainLoop(setting, how, setting.policy, setting.policy, cases, setting.dtype)
        rows[how] = _timed(setting, cases, loop.step)
        del loop
    gaps = {how: _gap(rows["ours"]["losses"], rows[how]["losses"]) for how in HOWS}
    best = min(rows[how]["step_s"] for how in HOWS)
    ours, weights = rows["ours"], _weights(setting)
    rate, needed = matrix_rate(setting), statistics.mean(useful_flops(setting, weights, *_batches(setting, cases)))
    facts = {
        "ratio": best / ours["step_s"],
        "ratios": {how: rows[how]["step_s"] / ours["step_s"] for how in HOWS},
        "share": needed / ours["step_s"] / rate,
        "useful_tflops": needed / 1e12,
        "matrix_tflops_per_s": rate / 1e12,
        "loss_gaps": gaps,
        "ok": max(gaps.values()) <= TOLERANCE[setting.dtype],
    }
    if ours["peak_bytes"] is not None:
        facts["memory"] = ours["peak_bytes"] / (ADAM_BYTES * weights)
    return {**facts, **{name: {k: v for k, v in row.items() if k != "losses"} for name, row in rows.items()}}


def _ours(setting: Setting, cases: Sequence[TokenizedCase]) -> dict[str, Any]:
    with one_rank(setting):
        reference = build_reference(setting.policy, cases, None, setting.folder, setting.dtype)
        by_id = {case.case_id: case for case in cases}
        learner = Learner(setting.config(), setting.policy, reference, by_id, device=setting.device)
        pairs = pairs_of(cases)
        return _timed(setting, cases, lambda part, labels: learner.step(labels, pairs)["loss"] or 0.0)


def _timed(setting: Setting, cases: Sequence[TokenizedCase], step: Step) -> dict[str, Any]:
    """Take every step twice; the second pass is timed."""
    gc.collect()
    setting.reset_peak()
    labels, seconds, losses = labels_of(cases), [], []
    for _ in range(2):
        seconds.clear()
        for start in range(0, len(cases), setting.batch):
            part = slice(start, start + setting.batch)
            setting.wait()
            began = time.perf_counter()
            losses.append(step(cases[part], labels[part]))
            setting.wait()
            seconds.append(time.perf_counter() - began)
    return {"step_s": statistics.median(seconds), "peak_bytes": setting.peak_bytes(), "losses": losses}


def _gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def _batches(setting: Setting, cases: Sequence[TokenizedCase]) -> tuple[list[list[PackedBatch]], int]:
    """The packed batches of every step, and the tokens of all trees."""
    trees = [build_tree(c, label.explanation, ONE_TOKEN) for c, label in zip(cases, labels_of(cases), strict=True)]
    starts = range(0, len(trees), setting.batch)
    return [pack(trees[s : s + setting.batch], setting.token_budget) for s in starts], sum(map(len, trees))


def useful_flops(setting: Setting, weights: int, steps: Sequence[Sequence[PackedBatch]], tokens: int) -> list[float]:
    """Of each step. weights: of the policy; its embeddings take part in products where a row is read alone.

    Padding and the pairs of tokens that do not see each other count nothing.
    """
    shape = setting.shape(setting.policy)
    head = shape["vocab_size"] * shape["hidden_size"]
    pair = 4 * shape["num_hidden_layers"] * shape["num_attention_heads"] * shape["head_dim"]
    found = []
    for batches in steps:
        flops = 0.0
        for batch in batches:
            seen = int((batch.end_RT - np.arange(batch.end_RT.shape[1])).sum())  # the queries that see each token
            read = len(batch.outputs_N) - batch.sections.deciding
            flops += 2 * (weights - head) * sum(map(len, batch.trees)) + 2 * head * read + pair * seen
        found.append(3 * flops)
    return found


def _weights(setting: Setting) -> int:
    """Weights of the timed policy; a tied head counts once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(setting.policy))
    return sum(p.numel() for p in model.parameters())


def matrix_rate(setting: Setting) -> float:
    """Floating-point operations per second of products of large square matrices, the best of ten."""
    size = 8192 if setting.on_gpu else 256
    a, b = (torch.randn(size, size, device=setting.device, dtype=getattr(torch, setting.dtype)) for _ in range(2))
    seconds = []
    for _ in range(12):  # the first two warm up
        setting.wait()
        began = time.perf_counter()
        a @ b
        setting.wait()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds[2:])
