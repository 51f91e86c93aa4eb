"""Case -> token trie: x, x∖C and q + e of one case as one tree.

x, x∖C and q + e share most of their tokens, so a case is stored as a trie: a token attends to itself and its ancestors
only, and its position is its depth. Three kinds of node give logits: the last tokens of x and of x∖C (behaviour and
KL), the nodes before each target token of e (cross-entropy), and the nodes of the label trie with several children,
from which the model's own greedy explanation is read.

Nodes are numbered in depth-first order. So node j is i itself or an ancestor of i exactly when j <= i < end[j], and the
whole mask follows from one integer per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from introspect_ray.cases.label_trie import Branch, Tokens, label_branches
from introspect_ray.cases.lookup import records_of
from introspect_ray.cases.prefix import common_prefix
from introspect_ray.records import Explanation, TokenizedCase

CACHED_TOKENS = 2_000_000  # tokens of the trees that a TreeCache keeps, at 32 bytes each

TreeKey = tuple[str, Explanation | None]  # case id, and the explanation to train on if there is one


@dataclass(frozen=True, slots=True)
class PromptTree:
    """The trie of one case. All arrays are int64; nodes are in depth-first order.

    Example: x (1, 7), x∖C (1,), q (1, 7, 4), e (20, 2) -> token [1, 7, 4, 20], parent [-1, 0, 1, 2]. The last target
    token needs no node, since nothing is predicted after it.
    """

    case_id: str
    label: Explanation | None
    label_names: tuple[str, ...]  # the allowed labels of the case
    label_ids: Tokens  # their answer tokens, in the same order
    token: np.ndarray  # [nodes]
    parent: np.ndarray  # [nodes], -1 at a root
    depth: np.ndarray  # [nodes], 0 at a root: the position id
    end: np.ndarray  # [nodes], one past the last descendant
    cued: int  # last node of x
    ablated: int  # last node of x∖C
    predictors: np.ndarray  # [K] node whose logits predict targets[k]
    targets: np.ndarray  # [K] tokens of e with its end of turn
    branches: tuple[Branch, ...]
    branch_nodes: np.ndarray  # [len(branches)] node whose logits decide each branch

    def __len__(self) -> int:
        return len(self.token)


class TreeCache:
    """The trees of cases, built when they are first needed. Beyond CACHED_TOKENS the cache is emptied."""

    def __init__(self) -> None:
        self._trees: dict[TreeKey, PromptTree] = {}
        self._tokens = 0

    def trees(self, cases: Mapping[str, TokenizedCase], keys: Sequence[TreeKey]) -> list[PromptTree]:
        """The trees of `keys`, in order. The cases of those that must be built are looked up in one call."""
        trees = {key: self._trees[key] for key in keys if key in self._trees}
        missing = [key for key in dict.fromkeys(keys) if key not in trees]
        for key, case in zip(missing, records_of(cases, [case_id for case_id, _ in missing]), strict=True):
            trees[key] = tree = build_tree(case, key[1])
            if self._tokens + len(tree) > CACHED_TOKENS:
                self._trees.clear()
                self._tokens = 0
            self._trees[key] = tree
            self._tokens += len(tree)
        return [trees[key] for key in keys]


def build_tree(case: TokenizedCase, label: Explanation | None) -> PromptTree:
    """The trie of x, x∖C, q + e and the branching prefixes of the label trie. Without a label: of x and x∖C only.

    Raises ValueError for an empty prompt and KeyError for a label that the case does not have.
    """
    if not (case.prompt and case.ablated and case.question):
        raise ValueError(f"case {case.case_id}: x, x∖C and q must have at least one token each")
    branches = label_branches(tuple(case.explanations.items())) if label is not None else ()
    target = case.explanations[label] if label is not None else ()
    spine = case.question + target[:-1] if label is not None else case.prompt
    deciders = [case.question + branch.prefix for branch in branches]
    node_of, (token, parent, depth, end) = _trie((case.prompt, case.ablated, spine, *deciders))
    path = node_of[spine]
    return PromptTree(
        case_id=case.case_id,
        label=label,
        label_names=case.labels,
        label_ids=case.label_ids,
        token=token,
        parent=parent,
        depth=depth,
        end=end,
        cued=node_of[case.prompt][-1],
        ablated=node_of[case.ablated][-1],
        predictors=np.array(path[len(path) - len(target) :] if target else [], np.int64),
        targets=np.array(target, np.int64),
        branches=branches,
        branch_nodes=np.array([node_of[tokens][-1] for tokens in deciders], np.int64),
    )


def _trie(sequences: Iterable[Tokens]) -> tuple[dict[Tokens, list[int]], np.ndarray]:
    """The nodes along each sequence, and the rows (token, parent, depth, end) of the nodes: int64 [4, nodes].

    In sorted order, what a sequence shares with its predecessor is exactly the part of it that is in the trie already.
    So one pass numbers the nodes depth first.
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
    return node_of, np.array([token, parent, depth, end], np.int64)
