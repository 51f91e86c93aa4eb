"""Probes: what trainer and engine both compute on a delivery of weights, to see whether the engine serves them. Pure.

A probe is a few short prompts, and the tokens whose logprobs are read at their ends. Which ones follows from the number
of the delivery, so that deliveries in a row look at other cases and other tokens, in two parts:

- a case: CASE_TOKENS tokens in a row of its x and of its x∖C, read at the tokens of its labels. All layers take part,
  attention included.
- tokens of the vocabulary, ITEM_TOKENS at a time: two prompts, each of the window's first CONTEXT tokens and half of
  them, read at all of them. So the embedding and the row of the output head of each of these tokens take part, and
  little else that could hide them.

A delivery costs 2 * rollout.probe_tokens + 2 * CASE_TOKENS tokens of one forward without gradient, in the engine and in
the trainer. Three quarters of the vocabulary's part go to the tokens that the training cases use, in turn, and the rest
to the others: `ProbePlan.rounds` says after how many deliveries each was looked at. The last delivery, whose weights
are evaluated, looks at as many as LAST_FACTOR others together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from introspect_ray.cases.answers import Tokens, probe_tokens
from introspect_ray.records import TokenizedCase
from introspect_ray.rng import bits

CASE_TOKENS = 16  # of each prompt of a case: all layers take part, at a tenth of the cost of a whole Hint-MMLU case
ITEM_TOKENS = 8  # of the vocabulary in one item: four per prompt; among more a token's embedding counts less
# Tokens before them. Without any, some prompts of four tokens at random are so far from a text that rounding to
# bfloat16 moves their logprobs by nats (SmolLM2-135M, the probes of 80 deliveries: by 3.3 at most, with them by 0.68).
CONTEXT = 4
LAST_FACTOR = 64  # deliveries in one; the last one comes once


@dataclass(frozen=True, slots=True)
class ProbeItem:
    """Two prompts, and the tokens whose logprobs are read at the end of each. Example: ((7, 9), (7,), (10, 11))."""

    first: Tokens
    second: Tokens
    asked: Tokens


Probe = tuple[ProbeItem, ...]


class Rounds(NamedTuple):
    """Deliveries until each token was looked at: those that training cases use, and the others (0: there are none)."""

    used: int
    others: int


def case_item(case: TokenizedCase) -> ProbeItem:
    """The whole prompts of a case, x and x∖C."""
    return ProbeItem(case.prompt, case.ablated, probe_tokens(case))


def prompts_of(probe: Probe) -> tuple[list[Tokens], list[Tokens]]:
    """All prompts of a probe, and the tokens asked for at the end of each: in the order of its logprobs."""
    prompts = [prompt for item in probe for prompt in (item.first, item.second)]
    return prompts, [item.asked for item in probe for _ in range(2)]


class ProbePlan:
    """The probe of each delivery of a run: a pure function of cases, seed and the delivery's number."""

    def __init__(self, cases: Sequence[TokenizedCase], used: NDArray[np.bool_], tokens: int, seed: int) -> None:
        """used: by token of the vocabulary, whether a training case has it. tokens: of the vocabulary, per delivery.

        Raises ValueError without cases, and for fewer tokens than one item of each part needs.
        """
        if not len(cases) or tokens < 4 * ITEM_TOKENS:
            raise ValueError(f"a probe needs a case and {4 * ITEM_TOKENS} tokens, got {len(cases)} and {tokens}")
        self._cases, self._seed = cases, seed
        self._used, self._others = (self._shuffled(np.flatnonzero(part)) for part in (used, ~used))
        items = tokens // ITEM_TOKENS
        self._items = (items - items // 4, items // 4) if len(self._others) else (items, 0)

    @property
    def rounds(self) -> Rounds:
        of_used, of_others = self._items
        others = -(-len(self._others) // (of_others * ITEM_TOKENS)) if of_others else 0
        return Rounds(-(-len(self._used) // (of_used * ITEM_TOKENS)), others)

    def at(self, number: int) -> Probe:
        """The probe of delivery `number` (0, 1, ...)."""
        return self._probe(number, *self._items)

    def last(self, number: int) -> Probe:
        """The probe of the last delivery: tokens of LAST_FACTOR deliveries from `number` on, each once."""
        of_used, of_others = (
            min(count * LAST_FACTOR, -(-len(pool) // ITEM_TOKENS))
            for count, pool in zip(self._items, (self._used, self._others), strict=True)
        )
        return self._probe(number, of_used, of_others)

    def _probe(self, number: int, of_used: int, of_others: int) -> Probe:
        """A case, and so many items of tokens that cases use and of others, from those of delivery `number` on."""
        case = self._cases[bits(self._seed, number, "probe case") % len(self._cases)]
        place = bits(self._seed, number, "probe place")
        window = _window(case.prompt, place)
        return (
            ProbeItem(window, _window(case.ablated, place), probe_tokens(case)),
            *_items(self._used, number * self._items[0], of_used, window[:CONTEXT]),
            *_items(self._others, number * self._items[1], of_others, window[:CONTEXT]),
        )

    def _shuffled(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        keys = np.fromiter((bits(self._seed, int(token), "probe token") for token in tokens), np.uint64, len(tokens))
        return tokens[np.argsort(keys, kind="stable")]


def _window(prompt: Tokens, place: int) -> Tokens:
    start = place % max(1, len(prompt) - CASE_TOKENS + 1)
    return prompt[start : start + CASE_TOKENS]


def _items(pool: NDArray[np.int64], first: int, count: int, context: Tokens) -> Iterator[ProbeItem]:
    """Items first, first + 1, ... of a pool that is cut into them again and again, after the same context."""
    for item in range(first, first + count if len(pool) else first):
        at = np.arange(item * ITEM_TOKENS, (item + 1) * ITEM_TOKENS) % len(pool)
        tokens = tuple(pool[at].tolist())
        half = ITEM_TOKENS // 2
        yield ProbeItem(context + tokens[:half], context + tokens[half:], tuple(dict.fromkeys(tokens)))
