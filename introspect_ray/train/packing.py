"""Case -> token trie; tries -> packed batches: x, x∖C and q + e of a case in one forward.

x, x∖C and q + e share most of their tokens, so a case is stored as a trie in which a token attends to
itself and its ancestors only and has its depth as position. Three kinds of node give logits: the last
tokens of x and x∖C (behaviour, KL), the nodes before each target token of e (cross-entropy), and the
nodes of the label trie with more than one child, from which the model's own greedy explanation is read.

Nodes are numbered in depth-first order, hence node j is an ancestor of i or i itself exactly when
j <= i < end[j]: the whole mask follows from one integer a token.

Shape suffixes: R rows, T tokens a row, B cases, K target tokens, N output nodes, P candidates of a walk.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from introspect_ray.cases.label_trie import Branch, Tokens, label_branches
from introspect_ray.cases.prefix import common_prefix
from introspect_ray.records import Explanation, TokenizedCase

# Weights in the choice of rows. Row length at which attention costs as much as the rest of a layer
# (measured on a CPU: 480 at width 64, 2,600 at width 576), and tokens that cost as much as one more batch.
ATTENTION_SCALE = 512
BATCH_OVERHEAD = 128


@dataclass(frozen=True, slots=True)
class PromptTree:
    """The trie of one case. All arrays int64; nodes in depth-first order.

    Example: x (1, 7), x∖C (1,), q (1, 7, 4), e (20, 2) -> token [1, 7, 4, 20], parent [-1, 0, 1, 2]; the
    last target token needs no node, since nothing is read off it.
    """

    case_id: str
    label: Explanation | None
    label_ids: Tokens
    token: np.ndarray  # [nodes]
    parent: np.ndarray  # [nodes], -1 at a root
    depth: np.ndarray  # [nodes], 0 at a root: the position id
    end: np.ndarray  # [nodes], one past the last descendant
    cued: int  # last node of x
    ablated: int  # last node of x∖C
    predictors: np.ndarray  # [K] node whose logits predict targets[k]
    targets: np.ndarray  # [K] tokens of e with its end of turn
    branches: tuple[Branch, ...]
    branch_nodes: np.ndarray  # [len(branches)] node that decides each branch

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Trees placed back to back in rows of equal length; padding attends to itself only. Arrays int64.

    `outputs_N` are flat indices into R * T, in this order: x of each tree, x∖C of each tree (so 2B
    behaviour nodes), K predictors, D deciding nodes, one a branch. `label_*` and `walk_*` list (row, token)
    pairs to be read off the logits at the behaviour nodes and at the deciding nodes: the labels, the children.
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
        """Lengths of the parts of outputs_N: behaviour, predictors, deciding nodes."""
        behaviour, targets = 2 * len(self.trees), len(self.targets_K)
        return behaviour, targets, len(self.outputs_N) - behaviour - targets


def build_tree(case: TokenizedCase, label: Explanation | None) -> PromptTree:
    """The trie of x, x∖C, q + e and the label trie's branching prefixes; of x and x∖C only if label is None.

    Raises ValueError for an empty prompt and KeyError for a label the case does not have.
    """
    if not (case.prompt and case.ablated and case.question):
        raise ValueError(f"case {case.case_id}: x, x∖C and q must have at least one token each")
    branches = label_branches(tuple(case.explanations.items())) if label is not None else ()
    target = case.explanations[label] if label is not None else ()
    spine = case.question + target[:-1] if label is not None else case.prompt
    deciders = [case.question + branch.prefix for branch in branches]
    node_of, arrays = _trie((case.prompt, case.ablated, spine, *deciders))
    path = node_of[spine]
    return PromptTree(
        case.case_id,
        label,
        case.label_ids,
        *arrays,
        cued=node_of[case.prompt][-1],
        ablated=node_of[case.ablated][-1],
        predictors=np.array(path[len(path) - len(target) :] if target else [], np.int64),
        targets=np.array(target, np.int64),
        branches=branches,
        branch_nodes=np.array([node_of[tokens][-1] for tokens in deciders], np.int64),
    )


def _trie(sequences: Iterable[Tokens]) -> tuple[dict[Tokens, list[int]], tuple[np.ndarray, ...]]:
    """Node path of each sequence, and (token, parent, depth, end).

    In sorted order each sequence shares with its predecessor exactly its part of the trie that exists
    already, so one pass numbers the nodes depth first.
    """
    token: list[int] = []
    parent: list[int] = []
    depth: list[int] = []
    end: list[int] = []
    path: list[int] = []
    node_of: dict[Tokens, list[int]] = {}
    previous: Tokens = ()
    for sequence in sorted(set(sequences)):
        shared = common_prefix(previous, sequence)
        first, new = len(token), len(sequence) - shared
        for node in path[shared:]:
            end[node] = first
        token.extend(sequence[shared:])
        depth.extend(range(shared, len(sequence)))
        if new:
            parent.append(path[shared - 1] if shared else -1)
            parent.extend(range(first, first + new - 1))
        path = path[:shared] + list(range(first, first + new))
        end.extend([-1] * new)
        node_of[sequence] = path
        previous = sequence
    for node in path:
        end[node] = len(token)
    return node_of, tuple(np.array([token, parent, depth, end], np.int64))


def pack(trees: Sequence[PromptTree], token_budget: int) -> list[PackedBatch]:
    """Place trees back to back in rows, and rows of similar length in batches of at most token_budget tokens.

    Deterministic. A tree longer than the budget gets a batch of its own; none is dropped. Row capacity is
    the multiple of the longest tree with the least estimated cost: longer rows waste less on padding,
    shorter ones less on attention to other trees.
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
    """Best fit, longest first: each tree goes to the fullest row that still takes it."""
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
    """(row length, rows) of each batch: rows sorted by length, a new batch where padding would cost more than one."""
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
    """(group, token) of each token."""
    counts = [len(group) for group in tokens]
    return np.arange(len(tokens)).repeat(counts), np.fromiter(chain.from_iterable(tokens), np.int64, sum(counts))


def placeholder() -> PackedBatch:
    """A batch without cases, for a rank that has none left while the others still run collectives."""
    one, none = np.zeros((1, 1), np.int64), np.zeros(0, np.int64)
    return PackedBatch((), one, one, one + 1, np.zeros(1, np.int64), none, none, none, none, none)
