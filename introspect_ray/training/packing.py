"""Prompt trees -> packed batches: many cases in one forward, with little padding.

Shape suffixes: R rows, T tokens per row, B cases, K target tokens, N output nodes, P (row, token) pairs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from introspect_ray.cases.label_trie import Tokens
from introspect_ray.training.prompt_tree import PromptTree

# Weights in the choice of the row length. ATTENTION_SCALE: the row length at which attention costs as much as the rest
# of a layer (measured on a CPU: 480 at width 64, 2,600 at width 576). BATCH_OVERHEAD: the tokens that cost as much as
# one more batch.
ATTENTION_SCALE = 512
BATCH_OVERHEAD = 128


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Trees placed back to back in rows of equal length; padding attends to itself only. All arrays are int64.

    `outputs_N` are flat indices into R * T, in this order: x of each tree, x∖C of each tree (so 2B behaviour nodes),
    K predictors, one deciding node per branch. `label_*` and `walk_*` list the (row, token) pairs at which logits are
    read: each label at each behaviour node, and each child at each deciding node.
    """

    trees: tuple[PromptTree, ...]
    tokens_RT: np.ndarray
    positions_RT: np.ndarray
    end_RT: np.ndarray  # one past the last descendant, as an index into the row
    outputs_N: np.ndarray
    targets_K: np.ndarray
    label_rows: np.ndarray
    label_tokens: np.ndarray
    walk_rows_P: np.ndarray
    walk_tokens_P: np.ndarray

    @property
    def sections(self) -> tuple[int, int, int]:
        """Lengths of the three parts of outputs_N: behaviour nodes, predictors, deciding nodes."""
        behaviour, targets = 2 * len(self.trees), len(self.targets_K)
        return behaviour, targets, len(self.outputs_N) - behaviour - targets


def pack(trees: Sequence[PromptTree], token_budget: int) -> list[PackedBatch]:
    """Place trees back to back in rows, and rows of similar length in batches of at most `token_budget` tokens.

    The result depends on the arguments only. A tree longer than the budget gets a batch of its own; none is dropped.
    The row length is the multiple of the longest tree with the least estimated cost: longer rows waste less on padding,
    shorter rows less on attention between trees.
    """
    if not trees:
        return []
    longest = max(map(len, trees))
    capacities = [min(longest, token_budget), *(m * longest for m in (2, 4) if m * longest <= token_budget)]
    plans = [_stack(_fill_rows(trees, capacity), token_budget) for capacity in capacities]
    return [_assemble(rows, length) for length, rows in min(plans, key=_cost)]


def _cost(plan: list[tuple[int, list[list[PromptTree]]]]) -> float:
    """Estimated cost in tokens."""
    return sum(len(rows) * length * (1 + length / ATTENTION_SCALE) + BATCH_OVERHEAD for length, rows in plan)


def _fill_rows(trees: Sequence[PromptTree], capacity: int) -> list[list[PromptTree]]:
    """Best fit, longest first: each tree goes to the fullest row that still has room for it."""
    rows: list[list[PromptTree]] = []
    free: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for tree in sorted(trees, key=len, reverse=True):
        at = bisect_left(free, (len(tree), -1))
        if at == len(free):
            rows.append([tree])
            insort(free, (capacity - len(tree), len(rows) - 1))
        else:
            room, row = free.pop(at)
            rows[row].append(tree)
            insort(free, (room - len(tree), row))
    return rows


def _stack(rows: list[list[PromptTree]], token_budget: int) -> list[tuple[int, list[list[PromptTree]]]]:
    """(row length, rows) of each batch: rows sorted by length. A new batch starts where padding would cost more."""
    lengths = [sum(map(len, row)) for row in rows]
    batches: list[tuple[int, list[list[PromptTree]]]] = []
    padding = 0
    for index in sorted(range(len(rows)), key=lambda i: -lengths[i]):
        if batches:
            length, members = batches[-1]
            padding += length - lengths[index]
            if (len(members) + 1) * length <= token_budget and padding <= BATCH_OVERHEAD:
                members.append(rows[index])
                continue
        batches.append((lengths[index], [rows[index]]))
        padding = 0
    return batches


def _assemble(rows: list[list[PromptTree]], length: int) -> PackedBatch:
    tokens = np.zeros((len(rows), length), np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    ends = np.tile(np.arange(1, length + 1), (len(rows), 1))  # padding attends to itself only
    trees: list[PromptTree] = []
    starts: list[int] = []  # flat index of each tree's first node
    for r, row in enumerate(rows):
        at = 0
        for tree in row:
            span = slice(at, at + len(tree))
            tokens[r, span], positions[r, span], ends[r, span] = tree.token, tree.depth, tree.end + at
            trees.append(tree)
            starts.append(r * length + at)
            at += len(tree)
    return PackedBatch(tuple(trees), tokens, positions, ends, *_outputs(trees, starts))


def _outputs(trees: list[PromptTree], starts: list[int]) -> tuple[np.ndarray, ...]:
    """outputs_N, targets_K, label_rows, label_tokens, walk_rows_P, walk_tokens_P of a PackedBatch."""
    flat = np.array(starts, np.int64)
    behaviour = np.array([[t.cued for t in trees], [t.ablated for t in trees]], np.int64) + flat
    targets = np.concatenate([t.targets for t in trees])
    predictors = np.concatenate([t.predictors for t in trees]) + flat.repeat([len(t.targets) for t in trees])
    deciders = np.concatenate([t.branch_nodes for t in trees]) + flat.repeat([len(t.branches) for t in trees])
    labels = [t.label_ids for t in trees] * 2
    children = [branch.tokens for t in trees for branch in t.branches]
    return (
        np.concatenate([behaviour.reshape(-1), predictors, deciders]),
        targets,
        *_pairs(labels),
        *_pairs(children),
    )


def _pairs(tokens: Sequence[Tokens]) -> tuple[np.ndarray, np.ndarray]:
    """The (group, token) pairs of all tokens, as two arrays."""
    counts = [len(group) for group in tokens]
    return np.arange(len(tokens)).repeat(counts), np.fromiter(chain.from_iterable(tokens), np.int64, sum(counts))


def placeholder() -> PackedBatch:
    """A batch without cases, for a rank that has no batch left while the other ranks still run collectives."""
    one, none = np.zeros((1, 1), np.int64), np.zeros(0, np.int64)
    return PackedBatch((), one, one, one + 1, np.zeros(1, np.int64), none, none, none, none, none)
