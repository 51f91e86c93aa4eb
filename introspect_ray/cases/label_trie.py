"""The trie of all valid explanations of a case, and a greedy walk over it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from introspect_ray.records import Explanation

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A node of the label trie with several children: the tokens before it, and where each child leads."""

    prefix: Tokens  # explanation tokens up to and including this node; () is the end of q
    tokens: Tokens  # the children
    leads_to: tuple[int | Explanation, ...]  # index of the next branch, or the only explanation left


@lru_cache(maxsize=4096)
def label_branches(explanations: tuple[tuple[Explanation, Tokens], ...]) -> tuple[Branch, ...]:
    """Branching nodes of the trie of all explanations, root first. () if there is only one explanation.

    Raises ValueError if one explanation's tokens are a prefix of another's (no end of turn).
    """
    branches: list[Branch] = []

    def visit(group: Sequence[tuple[Explanation, Tokens]], depth: int) -> int | Explanation:
        if len(group) == 1:
            return group[0][0]
        children: dict[int, list[tuple[Explanation, Tokens]]] = {}
        for explanation, tokens in group:
            if len(tokens) <= depth:
                raise ValueError(
                    f"{explanation} is a prefix of another explanation: end all with the end-of-turn token"
                )
            children.setdefault(tokens[depth], []).append((explanation, tokens))
        if len(children) == 1:
            return visit(group, depth + 1)
        index = len(branches)
        prefix = group[0][1][:depth]
        branches.append(Branch(prefix, (), ()))  # keeps the place: parents come before children
        branches[index] = Branch(prefix, tuple(children), tuple(visit(sub, depth + 1) for sub in children.values()))
        return index

    visit(explanations, 0)
    return tuple(branches)


def walk_explanations(tries: Iterable[tuple[Branch, ...]], logits: Sequence[float]) -> list[Explanation]:
    """The greedy explanation over each trie; `logits` lists those of all children of all branches, in order.

    Ties go to the first child.
    """
    explanations: list[Explanation] = []
    at = 0
    for branches in tries:
        starts = []
        for branch in branches:
            starts.append(at)
            at += len(branch.tokens)
        where: int | Explanation = 0
        while isinstance(where, int):
            branch, start = branches[where], starts[where]
            scores = logits[start : start + len(branch.tokens)]
            where = branch.leads_to[max(range(len(scores)), key=scores.__getitem__)]
        explanations.append(where)
    return explanations
