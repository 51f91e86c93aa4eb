"""Tokens and FLOPs of a training step and of its rollouts, from real cases or from stated means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from introspect_ray.cases.prefix import common_prefix
from introspect_ray.config import RunConfig, TaskConfig
from introspect_ray.config.compatibility import learner_labels
from introspect_ray.planning.hardware import Assumptions
from introspect_ray.planning.model_shape import ModelShape
from introspect_ray.records import TokenizedCase
from introspect_ray.train.prompt_tree import build_tree


@dataclass(frozen=True)
class CaseWork:
    """Means over the cases of a task; all are tokens but where said otherwise."""

    source: str
    tree: float  # nodes of the packed tree: what a training forward computes
    tree_pairs: float  # squared nodes: every pair of a tree, as SDPA computes; FlexAttention leaves blocks out
    prompt: float
    ablated: float
    question: float
    reused: float  # tokens of x∖C that the engine's prefix cache has from x: whole blocks
    both: float  # nodes of the tree of x and x∖C alone: what a trainer's labelling forward computes
    targets: float  # tokens of e
    branches: float  # deciding nodes of the label trie, rows of logits without gradient
    longest: int  # sequence that an engine must take: q + e, or x with its answer
    longest_tree: int
    train_cases: int
    test_cases: int

    @property
    def rollout_tokens(self) -> float:
        """Tokens an engine computes for a pair: x, and what x∖C does not share with it."""
        return self.prompt + self.ablated - self.reused

    @property
    def rollout_pairs(self) -> float:
        """(query, key) positions of a pair under causal attention."""
        return self.prompt**2 / 2 + (self.ablated**2 - self.reused**2) / 2


def assumed_work(a: Assumptions, task: TaskConfig) -> CaseWork:
    """The case of the assumptions table, as many of them as the split and the limits of `task` leave."""
    test = min(max(1, round(task.test_fraction * a.cases)), a.cases - 1)  # as tasks/split.py
    return CaseWork(
        source="assumptions (give task.path for the cases themselves)",
        tree=a.tree_tokens,
        tree_pairs=max(a.tree_tokens_squared, a.tree_tokens**2),
        prompt=a.prompt_tokens,
        ablated=a.ablated_tokens,
        question=a.question_tokens,
        reused=whole_blocks(a.shared_tokens, a.prefix_block),
        both=a.prompt_tokens + a.ablated_tokens - a.shared_tokens,
        targets=a.target_tokens,
        branches=a.branch_rows,
        longest=a.longest_tokens,
        longest_tree=a.longest_tree_tokens,
        train_cases=min(task.train_cases or a.cases, a.cases - test),
        test_cases=min(task.test_cases or test, test),
    )


def measured_work(source: str, train: Sequence[TokenizedCase], longest: int, test_cases: int, block: int) -> CaseWork:
    """Counted on the training cases themselves, their trees built as the learner builds them; `longest` sequence of
    an engine and number of held-out cases as given."""
    totals: Counter[str] = Counter()
    longest_tree = 0
    for case in train:
        label, target = next(iter(case.explanations.items()))
        tree = build_tree(case, label)
        totals["tree"] += len(tree)
        totals["tree_pairs"] += len(tree) ** 2
        totals["prompt"] += len(case.prompt)
        totals["ablated"] += len(case.ablated)
        totals["question"] += len(case.question)
        totals["reused"] += int(whole_blocks(common_prefix(case.prompt, case.ablated), block))
        totals["both"] += len(build_tree(case, None))
        totals["targets"] += len(tree.targets)
        totals["branches"] += len(tree.branches)
        longer = max(map(len, case.explanations.values())) - len(target)
        longest_tree = max(longest_tree, len(tree) + longer)
    means = {name: total / len(train) for name, total in totals.items()}
    return CaseWork(
        source=source,
        **means,
        longest=longest,
        longest_tree=longest_tree,
        train_cases=len(train),
        test_cases=test_cases,
    )


def whole_blocks(tokens: float, block: int) -> float:
    """Tokens in full cache blocks. Example: 151.7 tokens in blocks of 16 -> 144."""
    return tokens // block * block


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step over all GPUs, by what computes them."""

    forward: float  # body of the trees, and the heads of all rows
    backward: float
    recompute: float  # the body again under activation checkpointing
    reference: float  # M0's output head at the behaviour positions; live: its body as well
    rollout: float  # labelling, by the engines or by the trainers (rollout.engine=learner)

    @property
    def train(self) -> float:
        return self.forward + self.backward + self.recompute + self.reference


def step_flops(shape: ModelShape, work: CaseWork, cfg: RunConfig) -> StepFlops:
    """FLOPs of one step of cfg.batch_size cases.

    A backward costs two forwards (gradients of inputs and of weights); a frozen LoRA base takes only the first. A live
    reference costs another forward of the body. Rows with gradient: x, x∖C and each token of e; the label trie's rows
    have none.
    """
    cases = cfg.batch_size
    body = shape.body_flops(work.tree * cases) + shape.attention_flops(work.tree_pairs * cases)
    rows = shape.head_flops((2 + work.targets) * cases)
    full = cfg.method == "full"
    online = cfg.supervision.rule == "online"
    return StepFlops(
        forward=body + rows + shape.head_flops(work.branches * cases),
        backward=(2 if full else 1) * (body + rows),
        recompute=body if cfg.train.activation_checkpointing else 0.0,
        reference=shape.head_flops(2 * cases) + (body if cfg.train.reference == "live" else 0.0),
        rollout=label_flops(shape, work, cfg) * cases if online else 0.0,
    )


def pair_flops(shape: ModelShape, work: CaseWork) -> float:
    """FLOPs of labelling one case: prefill of x and of the rest of x∖C, two rows of logits; nothing is decoded."""
    body = shape.body_flops(work.rollout_tokens) + shape.attention_flops(work.rollout_pairs)
    return body + shape.head_flops(2)


def label_flops(shape: ModelShape, work: CaseWork, cfg: RunConfig) -> float:
    """FLOPs of labelling one case: an engine's pair, or a trainer's forward over the tree of x and x∖C."""
    return tree_flops(shape, work) if learner_labels(cfg) else pair_flops(shape, work)


def tree_flops(shape: ModelShape, work: CaseWork) -> float:
    """FLOPs of a trainer's forward over the tree of x and x∖C, with two rows of logits."""
    return shape.body_flops(work.both) + shape.attention_flops(work.both**2) + shape.head_flops(2)


def label_tokens(work: CaseWork, cfg: RunConfig) -> float:
    """Tokens computed to label one case."""
    return work.both if learner_labels(cfg) else work.rollout_tokens


def mean_micro_batches(tree: float, cases: int, token_budget: int) -> int:
    """Forwards that `cases` trees of `tree` tokens take under a token budget; a longer tree gets one of its own."""
    per_batch = max(1, int(token_budget // tree))
    return -(-cases // per_batch) if cases else 0
