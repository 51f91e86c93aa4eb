"""Case -> token trie: x, x∖C and q + e of one case as one tree, with M0's responses to x and x∖C.

The sequences share most of their tokens, so a case is stored as a trie: a token attends to itself and its ancestors
only, and its position is its depth. Four kinds of node give logits: where M0's response is predicted (KL), the inner
nodes of the trie of closed labels after x and x∖C (behaviour), the nodes before each target token of e (cross-entropy),
and the nodes of the explanations' trie with several children, from which the model's own greedy explanation is read.

Nodes are numbered in depth-first order. So node j is i itself or an ancestor of i exactly when j <= i < end[j], and the
whole mask follows from one integer per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from introspect_ray.cases.answers import LabelNode, label_nodes, response_path
from introspect_ray.cases.label_trie import Branch, Tokens, label_branches
from introspect_ray.cases.lookup import records_of
from introspect_ray.cases.prefix import common_prefix
from introspect_ray.cases.probes import ProbeItem
from introspect_ray.cases.tokenize import max_explanation_tokens, max_response_tokens
from introspect_ray.records import AuxiliaryText, BehaviorPair, Explanation, TokenizedCase

CACHED_TOKENS = 2_000_000  # tokens of the trees that a TreeCache keeps, at 32 bytes each

TreeKey = tuple[str, Explanation | None]  # case id, and the explanation to train on if there is one
Paths = tuple[Tokens, Tokens]  # the tokens of M0's responses to x and to x∖C (response_path)
ONE_TOKEN: Paths = ((), ())  # of labels of one token: the KL is taken at the end of each prompt alone


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A trie of token sequences. All arrays are int64; nodes are in depth-first order."""

    token: np.ndarray  # [nodes]
    parent: np.ndarray  # [nodes], -1 at a root
    depth: np.ndarray  # [nodes], 0 at a root: the position id
    end: np.ndarray  # [nodes], one past the last descendant
    predictors: np.ndarray  # [K] node whose logits predict targets[k]
    targets: np.ndarray  # [K] tokens to train on: e with its end of turn, or auxiliary data

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True, slots=True)
class Side:
    """Where x, or x∖C, of a case is read off. All arrays are int64."""

    kl_nodes: np.ndarray  # [1 + tokens of M0's path]: the end of the prompt and each token after it; [0] without KL
    label_nodes: np.ndarray  # [inner nodes of the label trie]: where the label is read; [0] for free text
    label_kl: np.ndarray  # likewise, which of kl_nodes the node is, or -1


@dataclass(frozen=True, slots=True)
class PromptTree(TokenTree):
    """The trie of one case.

    Example: x (1, 7), x∖C (1,), q (1, 7, 4), e (20, 2) -> token [1, 7, 4, 20], parent [-1, 0, 1, 2]. The last target
    token needs no node, since nothing is predicted after it.
    """

    case_id: str
    label: Explanation | None
    label_names: tuple[str, ...]  # the allowed labels of the case
    label_trie: tuple[LabelNode, ...]  # its inner nodes; () for free text
    cued: Side
    ablated: Side
    branches: tuple[Branch, ...]
    branch_nodes: np.ndarray  # [len(branches)] node whose logits decide each branch

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.cued, self.ablated


class TreeCache:
    """The trees of cases, built when they are first needed. Beyond CACHED_TOKENS the cache is emptied.

    A key needs no paths: M0 never changes, so they follow from the case.
    """

    def __init__(self) -> None:
        self._trees: dict[TreeKey, PromptTree] = {}
        self._tokens = 0

    def trees(
        self, cases: Mapping[str, TokenizedCase], keys: Sequence[TreeKey], m0: Mapping[str, BehaviorPair] | None = None
    ) -> list[PromptTree]:
        """The trees of `keys`, in order. The cases of those that must be built are looked up in one call.

        m0: M0's pairs, for the keys with an explanation; a tree without one has no KL nodes. Raises KeyError where a
        pair is missing.
        """
        trees = {key: self._trees[key] for key in keys if key in self._trees}
        missing = [key for key in dict.fromkeys(keys) if key not in trees]
        for key, case in zip(missing, records_of(cases, [case_id for case_id, _ in missing]), strict=True):
            paths = None if key[1] is None else response_paths(case, (m0 or {})[key[0]])
            trees[key] = tree = build_tree(case, key[1], paths)
            if self._tokens + len(tree) > CACHED_TOKENS:
                self._trees.clear()
                self._tokens = 0
            self._trees[key] = tree
            self._tokens += len(tree)
        return [trees[key] for key in keys]


def response_paths(case: TokenizedCase, m0: BehaviorPair) -> Paths:
    """M0's responses to x and to x∖C, as far as something is still to be predicted after them."""
    return (
        response_path(case, m0.cued, m0.cued_response),
        response_path(case, m0.ablated, m0.ablated_response),
    )


def build_tree(case: TokenizedCase, label: Explanation | None, paths: Paths | None) -> PromptTree:
    """The trie of x and x∖C with the inner nodes of the label trie; with paths, of M0's responses after them.

    With a label, the trie also holds q + e and the branching prefixes of all explanations. paths None: no KL, e.g. for
    labelling. Raises ValueError for an empty prompt and KeyError for a label that the case does not have.
    """
    if not (case.prompt and case.ablated and case.question):
        raise ValueError(f"case {case.case_id}: x, x∖C and q must have at least one token each")
    branches = label_branches(tuple(case.explanations.items())) if label is not None else ()
    target = case.explanations[label] if label is not None else ()
    spine = case.question + target[:-1] if label is not None else case.prompt
    deciders = [case.question + branch.prefix for branch in branches]
    answers = () if case.max_response else label_nodes(case.label_tokens)
    prompts = case.prompt, case.ablated
    read = [prompt + node.prefix for prompt in prompts for node in answers]
    responses = [prompt + path for prompt, path in zip(prompts, paths or ONE_TOKEN, strict=True)]
    node_of, (token, parent, depth, end) = _trie((*prompts, *read, *responses, spine, *deciders))
    path = node_of[spine]
    cued, ablated = (
        _side(node_of, prompt, answers, None if paths is None else paths[i]) for i, prompt in enumerate(prompts)
    )
    return PromptTree(
        token=token,
        parent=parent,
        depth=depth,
        end=end,
        predictors=np.array(path[len(path) - len(target) :] if target else [], np.int64),
        targets=np.array(target, np.int64),
        case_id=case.case_id,
        label=label,
        label_names=case.labels,
        label_trie=answers,
        cued=cued,
        ablated=ablated,
        branches=branches,
        branch_nodes=np.array([node_of[tokens][-1] for tokens in deciders], np.int64),
    )


def item_tree(name: str, item: ProbeItem) -> PromptTree:
    """The two prompts of a probe's item as the tree of a case, each with all tokens that are asked for as labels."""
    tokens = tuple((token,) for token in item.asked)
    case = TokenizedCase(name, tuple(map(str, item.asked)), tokens, item.first, item.second, item.first, {})
    return build_tree(case, None, None)


def _side(
    node_of: Mapping[Tokens, list[int]], prompt: Tokens, answers: Sequence[LabelNode], path: Tokens | None
) -> Side:
    kl_nodes = [] if path is None else node_of[prompt + path][len(prompt) - 1 :]
    on_path = [path is not None and node.prefix == path[: len(node.prefix)] for node in answers]
    return Side(
        kl_nodes=np.array(kl_nodes, np.int64),
        label_nodes=np.array([node_of[prompt + node.prefix][-1] for node in answers], np.int64),
        label_kl=np.array([len(n.prefix) if on else -1 for n, on in zip(answers, on_path, strict=True)], np.int64),
    )


def longest_sequence(case: TokenizedCase) -> int:
    """Most tokens on a path of the case's tree: q with an explanation, or a prompt with a response.

    The last token of a response does not count: nothing is predicted after it.
    """
    answered = max(len(case.prompt), len(case.ablated)) + max_response_tokens(case)
    return max(len(case.question) + max_explanation_tokens(case), answered - 1)


def text_tree(text: AuxiliaryText) -> TokenTree | None:
    """An auxiliary text as a tree without branches, up to the last token from which one is predicted.

    None for a text without targets, which adds nothing to the loss. Raises ValueError if its first token is a target,
    which nothing predicts, and if not every token is marked.
    """
    if len(text.targets) != len(text.tokens) or text.targets[:1] == (True,):
        raise ValueError(
            f"auxiliary text {text.text_id}: {len(text.tokens)} tokens with {len(text.targets)} marks, of which the "
            "first must be false"
        )
    targets = np.flatnonzero(text.targets)
    if not len(targets):
        return None
    nodes = np.arange(targets[-1])
    tokens = np.array(text.tokens, np.int64)
    return TokenTree(
        token=tokens[: len(nodes)],
        parent=nodes - 1,
        depth=nodes,
        end=np.full(len(nodes), len(nodes)),
        predictors=targets - 1,
        targets=tokens[targets],
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
