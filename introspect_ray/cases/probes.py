"""Probes: what trainer and engine both compute on a delivery of weights, to see whether the engine serves them. Pure.

A probe is a few short prompts, and the tokens whose logprobs are read at their ends. Which ones follows from the number
of the delivery, so that deliveries in a row look at other cases and other tokens, in two parts:

- a case: CASE_TOKENS tokens in a row of its x and of its x∖C, read at the tokens of its labels;
- items of ITEM_TOKENS tokens of the vocabulary: two prompts, each of CONTEXT tokens of the case and half of the item,
  read at all of the item. So the embedding and the row of the output head of each of these tokens take part.

All layers take part in each prompt. Of four items three are tokens that the training cases use, in turn, and one is of
the others: `ProbePlan.rounds` says after how many deliveries each was looked at. A delivery costs 1.5 * probe_tokens +
2 * CASE_TOKENS tokens of a forward without gradient (64 by default), in the engine and in the trainer. The last
delivery, whose weights are evaluated, looks at as many items as LAST_FACTOR others together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from introspect_ray.cases.answers import Tokens, probe_tokens
from introspect_ray.records import TokenizedCase
from introspect_ray.rng import bits

CASE_TOKENS = 8  # of each prompt of a case: a probe costs a tenth of a Hint-MMLU case
ITEM_TOKENS = 16  # of the vocabulary in one item: eight per prompt; among more a token's embedding counts less
OTHERS_EVERY = 4  # one item of so many is of tokens that no training case uses
# Tokens before them. Without any, some prompts of four tokens at random are so far from a text that rounding to
# bfloat16 moves their logprobs by nats (SmolLM2-135M, the probes of 80 deliveries: by 3.3 at most, with them by 0.85).
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

        Raises ValueError without cases, and for fewer tokens than an item has.
        """
        if not len(cases) or tokens < ITEM_TOKENS:
            raise ValueError(f"a probe needs a case and {ITEM_TOKENS} tokens, got {len(cases)} and {tokens}")
        self._cases, self._seed, self._items = cases, seed, tokens // ITEM_TOKENS
        self._used, self._others = (self._shuffled(np.flatnonzero(part)) for part in (used, ~used))

    @property
    def rounds(self) -> Rounds:
        used, others = (-(-len(pool) // ITEM_TOKENS) for pool in (self._used, self._others))
        slots = used + -(-used // (OTHERS_EVERY - 1)) if others else used
        return Rounds(-(-slots // self._items), -(-others * OTHERS_EVERY // self._items))

    def at(self, number: int) -> Probe:
        """The probe of delivery `number` (0, 1, ...)."""
        return self._probe(number, self._items)

    def last(self, number: int) -> Probe:
        """The probe of the last delivery: as much as LAST_FACTOR deliveries from `number` on, or all there is."""
        rounds = min(LAST_FACTOR, max(self.rounds))
        return self._probe(number, rounds * self._items)

    def _probe(self, number: int, items: int) -> Probe:
        case = self._cases[bits(self._seed, number, "probe case") % len(self._cases)]
        place = bits(self._seed, number, "probe place")
        window = _window(case.prompt, place)
        first = number * self._items
        return (
            ProbeItem(window, _window(case.ablated, place), probe_tokens(case)),
            *(self._item(slot, window[:CONTEXT]) for slot in range(first, first + items)),
        )

    def _item(self, slot: int, context: Tokens) -> ProbeItem:
        """The item of a slot. Slots are numbered through all deliveries."""
        pool, item = self._used, slot
        if len(self._others):
            turn, place = divmod(slot, OTHERS_EVERY)
            pool, item = (self._others, turn) if place == OTHERS_EVERY - 1 else (self._used, slot - turn)
        at = np.arange(item * ITEM_TOKENS, (item + 1) * ITEM_TOKENS) % len(pool)
        tokens = tuple(pool[at].tolist())
        half = ITEM_TOKENS // 2
        return ProbeItem(context + tokens[:half], context + tokens[half:], tuple(dict.fromkeys(tokens)))

    def _shuffled(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        keys = np.fromiter((bits(self._seed, int(token), "probe token") for token in tokens), np.uint64, len(tokens))
        return tokens[np.argsort(keys, kind="stable")]


def _window(prompt: Tokens, place: int) -> Tokens:
    start = place % max(1, len(prompt) - CASE_TOKENS + 1)
    return prompt[start : start + CASE_TOKENS]
