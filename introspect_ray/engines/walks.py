"""Explanations by a greedy walk over the trie of all valid ones: what an engine is asked, branch by branch. Pure.

Free greedy decoding writes token after token, whatever they are. Here the likeliest *child* is taken at each branch,
and what lies between two branches is not asked for, as nothing is to be decided there. So the answer is always a valid
explanation: the one that free decoding writes wherever it keeps to the tokens of valid explanations. Elsewhere free
decoding writes something else, mostly unparseable, and the walk says what the policy would have said in the form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from introspect_ray.cases.answers import Tokens
from introspect_ray.cases.label_trie import Branch, label_branches
from introspect_ray.cases.prefix import common_prefix
from introspect_ray.cases.tokenize import max_explanation_tokens
from introspect_ray.records import Explanation, TokenizedCase


class Asked(NamedTuple):
    """A question to the policy: which of `tokens` comes after `prompt`?"""

    prompt: Tokens
    tokens: Tokens


class Walks:
    """The walks of some cases, all at once: `asked` goes to an engine, and its answers to `go`, until none is asked."""

    def __init__(self, cases: Sequence[TokenizedCase]) -> None:
        self._cases = cases
        self._tries = [label_branches(tuple(case.explanations.items())) for case in cases]
        self._at: list[int | Explanation] = [
            0 if branches else next(iter(case.explanations)) for case, branches in zip(cases, self._tries, strict=True)
        ]

    def _open(self) -> Iterator[tuple[int, Branch]]:
        """The rows whose walk has not ended, and the branch at which each is."""
        for row, (where, branches) in enumerate(zip(self._at, self._tries, strict=True)):
            if isinstance(where, int):
                yield row, branches[where]

    def asked(self) -> list[Asked]:
        """What is to be asked next, of the walks that have not ended; [] when all have."""
        return [Asked(self._cases[row].question + branch.prefix, branch.tokens) for row, branch in self._open()]

    def go(self, answers: Sequence[Sequence[float]]) -> None:
        """answers: for each that was asked, logprobs of its tokens."""
        for (row, branch), logprobs in zip(list(self._open()), answers, strict=True):
            self._at[row] = branch.follow(logprobs)

    def tokens(self) -> list[Tokens]:
        """The explanations of all cases, when no walk is left, without their end of turn."""
        ends = zip(self._cases, self._at, strict=True)
        return [case.explanations[where][:-1] for case, where in ends if not isinstance(where, int)]


class Cache(NamedTuple):
    """A prefix cache: it holds `blocks` blocks of `size` tokens, and finds whole blocks alone."""

    blocks: int
    size: int


def cache_parts(cases: Sequence[TokenizedCase], cache: Cache | None) -> Iterator[list[TokenizedCase]]:
    """The cases in runs whose prompts fit into a prefix cache together, at least one case in each.

    So what is asked of a case last finds the beginning of its prompt, which is computed once: x, x∖C and q mostly begin
    alike. None: all cases in one run.
    """
    part: list[TokenizedCase] = []
    left = 0
    for case in cases:
        needs = _blocks(case, cache.size) if cache else 0
        if cache and part and needs > left:
            yield part
            part = []
        if cache and not part:
            left = cache.blocks
        part.append(case)
        left -= needs
    if part:
        yield part


def _blocks(case: TokenizedCase, size: int) -> int:
    """Blocks of x, x∖C and q with an explanation. What begins as x does shares its whole blocks; each further branch of
    the explanation has a last block of its own, of which there are two at most in the usual wordings."""
    x, ablated = case.prompt, case.ablated
    explained = len(case.question) + max_explanation_tokens(case)
    blocks = -(-len(x) // size) + -(-len(ablated) // size) + -(-explained // size) + 2
    return blocks - common_prefix(x, ablated) // size - common_prefix(x, case.question) // size
