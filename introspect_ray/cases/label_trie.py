"""The trie (prefix tree) of all valid explanations of a case as tokens, and a greedy walk over it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from introspect_ray.records import Explanation

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A node of the trie with several children: the tokens before it, and where each child leads."""

    prefix: Tokens  # explanation tokens up to and including this node; () at the root, where q ends
    tokens: Tokens  # the next token of each child
    leads_to: tuple[int | Explanation, ...]  # per child: index of the next branch, or the only explanation left

    def follow(self, scores: Sequence[float]) -> int | Explanation:
        """Where the child with the largest score leads, the first of equal ones. scores: one per child."""
        return self.leads_to[max(range(len(scores)), key=scores.__getitem__)]


@lru_cache(maxsize=4096)
def label_branches(explanations: tuple[tuple[Explanation, Tokens], ...]) -> tuple[Branch, ...]:
    """Nodes with several children in the trie of all explanations, parents first. () if there is one explanation.

    Raises ValueError if one explanation's tokens are a prefix of another's, as they may be without an end of turn.
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
        branches.append(Branch(prefix, (), ()))  # a placeholder, so that parents come before children
        branches[index] = Branch(prefix, tuple(children), tuple(visit(sub, depth + 1) for sub in children.values()))
        return index

    visit(explanations, 0)
    return tuple(branches)


def walk_explanations(tries: Iterable[tuple[Branch, ...]], logits: Sequence[float]) -> list[Explanation]:
    """The greedy explanation of each trie: at every branch the child with the largest logit, the first of equal ones.

    logits: one per child, in the order of the tries, of their branches and of the branches' children.
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
            where = branch.follow(logits[start : start + len(branch.tokens)])
        explanations.append(where)
    return explanations
