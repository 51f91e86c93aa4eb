"""Tokens and FLOPs of a step, a run and a sweep, from the cases themselves or from their assumed sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from introspect_ray.cases.split import held_out
from introspect_ray.config import RunConfig, TaskConfig
from introspect_ray.config.compatibility import learner_labels
from introspect_ray.config.m0_labels import why_engine_labels
from introspect_ray.planning.assumptions import Assumptions
from introspect_ray.planning.model_shape import ModelShape
from introspect_ray.records import TokenizedCase
from introspect_ray.training.prompt_tree import build_tree


@dataclass(frozen=True)
class CaseSizes:
    """Mean tokens per training case, longest sequences, and numbers of cases."""

    source: str
    tree: float  # x, x∖C and q + e as one tree: what a training forward computes
    pair: float  # x and x∖C, their common prefix once: what labelling computes
    question: float  # q
    target: float  # e with its end of turn
    longest: int  # sequence that an engine must take
    longest_tree: int
    train_cases: int
    test_cases: int


def assumed_sizes(a: Assumptions, task: TaskConfig) -> CaseSizes:
    """The assumed case, as often as the task's split and limits leave of the assumed number of cases."""
    test = int(held_out(np.arange(a.cases, dtype=np.uint64), task.test_fraction).sum())
    counts = min(task.train_cases or a.cases, a.cases - test), min(task.test_cases or test, test)
    means = a.tree_tokens, a.pair_tokens, a.question_tokens, a.target_tokens
    return CaseSizes("assumed", *means, a.longest_tokens, a.longest_tree_tokens, *counts)


def counted_sizes(source: str, train: Sequence[TokenizedCase], longest: int, test_cases: int) -> CaseSizes:
    """Counted on the training cases, as trees that the learner builds. `longest`: sequence of an engine, in tokens."""
    rows, longest_tree = [], 0
    for case in train:
        label, tokens = next(iter(case.explanations.items()))
        nodes = len(build_tree(case, label, None))
        rows.append((nodes, len(build_tree(case, None, None)), len(case.question), len(tokens)))
        longest_tree = max(longest_tree, nodes + max(map(len, case.explanations.values())) - len(tokens))
    tree, pair, question, target = np.mean(rows, axis=0).tolist()
    return CaseSizes(source, tree, pair, question, target, longest, longest_tree, len(train), test_cases)


@dataclass(frozen=True)
class Part:
    """Something that is computed once per step, run or sweep, over all GPUs."""

    per: Literal["step", "run", "sweep"]
    what: str
    by: Literal["trainers", "engines"]
    tokens: float
    flops: float


def work_parts(shape: ModelShape, case: CaseSizes, cfg: RunConfig) -> list[Part]:
    """Everything that a sweep computes, as lower bounds: an engine also computes again what does not fill a block of
    its prefix cache, and attention over the mean case costs less than the mean over the cases.

    A backward pass costs two forward passes (gradients of inputs and of weights), one with a frozen LoRA base.
    """
    batch, train, test = cfg.batch_size, case.train_cases, case.test_cases
    tree = shape.forward_flops(case.tree)
    trained = tree + shape.head_flops(2 + case.target)  # behaviour at x and x∖C, and each token of e
    pair = shape.forward_flops(case.pair) + shape.head_flops(2)
    explained = case.question + case.target
    explanation = shape.forward_flops(explained) + shape.head_flops(case.target)
    live = cfg.train.reference == "live"

    def training(what: str, flops: float, tokens: float = case.tree) -> Part:
        return Part("step", f"training: {what}", "trainers", batch * tokens, batch * flops)

    parts = [training("forward", trained), training("backward", trained * (2 if cfg.method == "full" else 1))]
    if recomputes_layers(cfg):
        parts.append(training("activations again", tree))
    parts.append(training("M0's distribution", shape.head_flops(2) + live * tree, live * case.tree))
    if cfg.supervision.rule == "online":
        by: Literal["trainers", "engines"] = "trainers" if learner_labels(cfg) else "engines"
        parts.append(Part("step", "labels: x and x∖C", by, batch * case.pair, batch * pair))
    once = why_engine_labels(cfg, free_text=False) is None  # the pass of the reference labels the training cases too
    labelled = test + (not once) * train + (cfg.supervision.rule == "mixed") * (train + test)
    tokens, flops = test * explained, test * explanation
    parts += [
        Part("run", "evaluation", "engines", test * case.pair + tokens, test * pair + flops),
        Part("sweep", "M0: labels, explanations", "engines", labelled * case.pair + tokens, labelled * pair + flops),
    ]
    if not live:
        parts.append(Part("sweep", "M0: cached reference", "trainers", train * case.pair, train * pair))
    return parts


def recomputes_layers(cfg: RunConfig) -> bool:
    """Whether layers are computed again in the backward pass; "auto" comes to that where memory is short, and
    "elementwise" counts as if all were kept."""
    return cfg.train.activation_checkpointing in ("auto", "layers")


def flops_per(parts: Iterable[Part], steps: int, trials: int) -> dict[str, float]:
    """FLOPs of one "step", of one "run" with its steps, and of a "sweep" with its runs."""
    own = {per: sum(part.flops for part in parts if part.per == per) for per in ("step", "run", "sweep")}
    run = own["run"] + steps * own["step"]
    return {"step": own["step"], "run": run, "sweep": own["sweep"] + trials * run}
