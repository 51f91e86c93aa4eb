"""Trees -> packed batches: many cases and auxiliary texts in one forward, with little padding.

Shape suffixes: R rows, T tokens per row, K target tokens, A auxiliary target tokens, N output nodes, L label nodes,
P (output row, token) pairs.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from introspect_ray.cases.label_trie import Tokens
from introspect_ray.training.prompt_tree import PromptTree, TokenTree

# Weights in the choice of the row length. ATTENTION_SCALE: the row length at which attention costs as much as the rest
# of a layer (measured on a CPU: 480 at width 64, 2,600 at width 576). BATCH_OVERHEAD: the tokens that cost as much as
# one more batch.
ATTENTION_SCALE = 512
BATCH_OVERHEAD = 128


class Sections(NamedTuple):
    """Lengths of the parts of PackedBatch.outputs_N, in their order."""

    kl: int  # x of each case, then x∖C of each: the end of the prompt and each token of M0's path
    labels: int  # label nodes that are no KL rows, in the same order
    targets: int  # predictors of explanation tokens
    auxiliary: int  # predictors of auxiliary tokens
    deciding: int  # branches of the explanations' tries


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Trees placed back to back in rows of equal length; padding attends to itself only. All arrays are int64.

    `outputs_N` are flat indices into R * T, in the order of `sections`. The label nodes come in the order: x of each
    case, then x∖C of each, and in each its label trie; `label_rows_L` are their output rows. `label_*_P` and `walk_*_P`
    list the (row, token) pairs at which logits are read: each child of each label node, counted from the first output
    row, and each child of each deciding node, counted from the first deciding row.
    """

    trees: tuple[PromptTree, ...]  # of the cases; auxiliary texts are in the rows only
    tokens_RT: np.ndarray
    positions_RT: np.ndarray
    end_RT: np.ndarray  # one past the last descendant, as an index into the row
    sections: Sections
    outputs_N: np.ndarray
    targets_K: np.ndarray
    auxiliary_A: np.ndarray
    label_rows_L: np.ndarray
    label_rows_P: np.ndarray
    label_tokens_P: np.ndarray
    walk_rows_P: np.ndarray
    walk_tokens_P: np.ndarray


def pack(trees: Sequence[TokenTree], token_budget: int) -> list[PackedBatch]:
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


def _cost(plan: list[tuple[int, list[list[TokenTree]]]]) -> float:
    """Estimated cost in tokens."""
    return sum(len(rows) * length * (1 + length / ATTENTION_SCALE) + BATCH_OVERHEAD for length, rows in plan)


def _fill_rows(trees: Sequence[TokenTree], capacity: int) -> list[list[TokenTree]]:
    """Best fit, longest first: each tree goes to the fullest row that still has room for it."""
    rows: list[list[TokenTree]] = []
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


def _stack(rows: list[list[TokenTree]], token_budget: int) -> list[tuple[int, list[list[TokenTree]]]]:
    """(row length, rows) of each batch: rows sorted by length. A new batch starts where padding would cost more."""
    lengths = [sum(map(len, row)) for row in rows]
    batches: list[tuple[int, list[list[TokenTree]]]] = []
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


def _assemble(rows: list[list[TokenTree]], length: int) -> PackedBatch:
    tokens = np.zeros((len(rows), length), np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    ends = np.tile(np.arange(1, length + 1), (len(rows), 1))  # padding attends to itself only
    cases: list[tuple[PromptTree, int]] = []  # with the flat index of the first node
    texts: list[tuple[TokenTree, int]] = []
    for r, row in enumerate(rows):
        at = 0
        for tree in row:
            span = slice(at, at + len(tree))
            tokens[r, span], positions[r, span], ends[r, span] = tree.token, tree.depth, tree.end + at
            if isinstance(tree, PromptTree):
                cases.append((tree, r * length + at))
            else:
                texts.append((tree, r * length + at))
            at += len(tree)
    return PackedBatch(tuple(tree for tree, _ in cases), tokens, positions, ends, *_outputs(cases, texts))


def _outputs(cases: Sequence[tuple[PromptTree, int]], texts: Sequence[tuple[TokenTree, int]]) -> tuple[Any, ...]:
    """The fields of a PackedBatch from `sections` on."""
    kl, labels, label_rows = _behaviour_rows(cases)
    predictors, auxiliary = (
        _joined(tree.predictors for tree, _ in trees) + _starts(trees).repeat([len(tree.targets) for tree, _ in trees])
        for trees in (cases, texts)
    )
    deciders = _joined(tree.branch_nodes for tree, _ in cases)
    deciders += _starts(cases).repeat([len(tree.branches) for tree, _ in cases])
    children = [node.tokens for tree, _ in cases for node in tree.label_trie] * 2
    return (
        Sections(*map(len, (kl, labels, predictors, auxiliary, deciders))),
        _joined((kl, labels, predictors, auxiliary, deciders)),
        *(_joined(tree.targets for tree, _ in trees) for trees in (cases, texts)),
        label_rows,
        *_pairs(label_rows, children),
        *_pairs(np.arange(len(deciders)), [branch.tokens for tree, _ in cases for branch in tree.branches]),
    )


def _behaviour_rows(cases: Sequence[tuple[PromptTree, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat indices of the KL rows and of the label nodes that are no KL rows, and label_rows_L."""
    sides = [tree.cued for tree, _ in cases] + [tree.ablated for tree, _ in cases]
    starts = np.tile(_starts(cases), 2)
    kl_counts = [len(side.kl_nodes) for side in sides]
    counts = [len(side.label_nodes) for side in sides]
    kl = _joined(side.kl_nodes for side in sides if len(side.kl_nodes)) + starts.repeat(kl_counts)
    nodes = _joined(side.label_nodes for side in sides) + starts.repeat(counts)
    place = _joined(side.label_kl for side in sides)
    alone = place < 0
    first = np.cumsum([0, *kl_counts])[:-1].repeat(counts)  # KL row at which the node's side begins
    return kl, nodes[alone], np.where(alone, len(kl) + np.cumsum(alone) - 1, first + place)


def _pairs(rows: np.ndarray, children: Sequence[Tokens]) -> tuple[np.ndarray, np.ndarray]:
    """The (row, token) pairs of the children of each row, as two arrays."""
    counts = [len(group) for group in children]
    return rows.repeat(counts), np.fromiter(chain.from_iterable(children), np.int64, sum(counts))


def _starts(trees: Sequence[tuple[TokenTree, int]]) -> np.ndarray:
    return np.array([start for _, start in trees], np.int64)


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def placeholder() -> PackedBatch:
    """A batch without cases, for a rank that has no batch left while the other ranks still run collectives."""
    one, none = np.zeros((1, 1), np.int64), np.zeros(0, np.int64)
    return PackedBatch((), one, one, one + 1, Sections(0, 0, 0, 0, 1), one[0], *[none] * 7)
