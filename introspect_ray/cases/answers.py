"""How an answer is read off logprobs: a greedy walk over the trie of the closed labels' tokens. Pure.

A label may have any number of tokens. Its logprob is the sum over its tokens, and the answer is the label that greedy
decoding restricted to the labels would write: child by child from the root. With one-token labels both are the argmax
over the labels at the answer position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from introspect_ray.records import BehaviorPair, TokenizedCase

Tokens = tuple[int, ...]
PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class LabelNode:
    """An inner node of the trie of all labels.

    Example: labels N-TA, Y-TA -> nodes ((), (N, Y), (1, 2)), ((N,), (TA,), (~0,)), ((Y,), (TA,), (~1,)).
    """

    prefix: Tokens  # label tokens up to and including this node; () is the end of the prompt
    tokens: Tokens  # the children
    leads_to: tuple[int, ...]  # index of the next node; ~i (negative) where label i ends


class Reading(NamedTuple):
    """One side of a case as read off the nodes of its label trie."""

    label: int  # index of the greedy label
    logprobs: tuple[float, ...]  # natural, one per label: the sum over its tokens
    off_format: bool  # at some node of the path the likeliest token of the vocabulary is no child
    path: tuple[int, ...]  # nodes that the greedy walk visits


@lru_cache(maxsize=4096)
def label_nodes(label_tokens: tuple[Tokens, ...]) -> tuple[LabelNode, ...]:
    """All inner nodes of the trie, root first; children in the order of the labels that begin with them.

    One-token labels: the root alone. Raises ValueError if a label has no tokens or its tokens are a prefix of (or equal
    to) another's: then nothing would tell where the shorter one ends.
    """
    nodes: list[LabelNode] = []

    def visit(members: Sequence[int], depth: int) -> int:
        children: dict[int, list[int]] = {}
        for label in members:
            if len(label_tokens[label]) <= depth:
                raise ValueError(f"the tokens of label {label}, {label_tokens[label]}, are a prefix of another label's")
            children.setdefault(label_tokens[label][depth], []).append(label)
        index = len(nodes)
        prefix = label_tokens[members[0]][:depth]
        nodes.append(LabelNode(prefix, (), ()))  # keeps the place: parents come before children
        leads_to = []
        for below in children.values():
            ends = len(below) == 1 and len(label_tokens[below[0]]) == depth + 1
            leads_to.append(~below[0] if ends else visit(below, depth + 1))
        nodes[index] = LabelNode(prefix, tuple(children), tuple(leads_to))
        return index

    visit(range(len(label_tokens)), 0)
    return tuple(nodes)


def read_label(
    nodes: Sequence[LabelNode],
    logprobs: Sequence[Sequence[float]],
    free: Sequence[int],
) -> Reading:
    """Read one side. logprobs: natural, full-vocabulary, of each node's children. free: each node's likeliest token.

    Ties go to the first child.
    """
    if len(nodes) == 1:  # labels of one token, which large runs read by the million: no walk
        only = tuple(logprobs[0])
        return Reading(only.index(max(only)), only, free[0] not in nodes[0].tokens, (0,))
    totals: dict[int, float] = {}

    def add(node: int, so_far: float) -> None:
        for logprob, leads in zip(logprobs[node], nodes[node].leads_to, strict=True):
            if leads < 0:
                totals[~leads] = so_far + logprob
            else:
                add(leads, so_far + logprob)

    add(0, 0.0)
    where, path, off_format = 0, [], False
    while where >= 0:
        path.append(where)
        off_format |= free[where] not in nodes[where].tokens
        scores = logprobs[where]
        where = nodes[where].leads_to[max(range(len(scores)), key=scores.__getitem__)]
    return Reading(~where, tuple(totals[i] for i in range(len(totals))), off_format, tuple(path))


def probe_tokens(case: TokenizedCase) -> Tokens:
    """The tokens whose logprobs after a part of x and of x∖C say whether an engine serves the trainer's weights.

    Closed labels: the children of the trie's root; one-token labels: the labels. Free text has none: the first
    PROBE_TOKENS distinct tokens of x, as good as any others.
    """
    if case.max_response:
        return tuple(dict.fromkeys(case.prompt))[:PROBE_TOKENS]
    return label_nodes(case.label_tokens)[0].tokens


def response_path(case: TokenizedCase, label: str, response: Tokens) -> Tokens:
    """The tokens of M0's response after which something of it is still to be predicted.

    The KL is taken at the end of the prompt and after each of these tokens. label: y(x) or y(x∖C); response: the tokens
    of a free text, whose end of turn is predicted as well unless it was cut at the case's max_response. For labels of
    one token the path is empty: the KL is taken at the end of the prompt alone.
    """
    if case.max_response:
        return response if len(response) < case.max_response else response[:-1]
    return case.label_tokens[case.labels.index(label)][:-1]


def make_pair(case: TokenizedCase, cued: Reading, ablated: Reading, version: int) -> BehaviorPair:
    """The behaviour pair of a case with closed labels, from the readings of x and of x∖C.

    Raises ValueError where a logprob is NaN: the greedy walk would be arbitrary.
    """
    for side, reading in (("x", cued), ("x∖C", ablated)):
        if any(map(math.isnan, reading.logprobs)):
            raise ValueError(
                f"case {case.case_id}: label logprobs on {side} are {reading.logprobs} at version {version}"
            )
    return BehaviorPair(
        case_id=case.case_id,
        cued=case.labels[cued.label],
        ablated=case.labels[ablated.label],
        cued_logprobs=cued.logprobs,
        ablated_logprobs=ablated.logprobs,
        cued_off_format=cued.off_format,
        ablated_off_format=ablated.off_format,
        weight_version=version,
    )
