"""Pairs of prompts to patch between: the same cue, aligned tokens, one explanation "changed" and one "unchanged". Pure.

The positions that can be patched are those of the tokens that x and q have in common: a causal model gives them the
same activations in both.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from introspect_ray.cases.prefix import common_prefix
from introspect_ray.errors import UserError
from introspect_ray.records import BehaviorPair, TokenizedCase
from introspect_ray.rng import bits

Tokens = tuple[int, ...]
Region = Literal["prefix", "cue"]
Side = Literal["cued", "ablated"]


class Layout(NamedTuple):
    """Where the cue lies in x, and how many tokens x and q begin with alike."""

    cue_start: int
    cue_stop: int
    shared: int


@dataclass(frozen=True)
class Answered:
    """A case with what the patched policy answers to it."""

    case: TokenizedCase
    behavior: BehaviorPair


@dataclass(frozen=True)
class PromptPair:
    """Two cases with the same cue. E(M) of the one is "changed", of the other "unchanged", and y(x) differs."""

    changed: Answered
    unchanged: Answered


def layout(case: TokenizedCase) -> Layout:
    """The cue is what is left of x without the tokens that x∖C begins and ends with."""
    start = common_prefix(case.prompt, case.ablated)
    stop = len(case.prompt) - _common_suffix(case.prompt, case.ablated, start)
    return Layout(start, stop, common_prefix(case.prompt, case.question))


def patched_positions(case: TokenizedCase, side: Side, region: Region) -> tuple[Sequence[int], Sequence[int]]:
    """The positions to patch, in x (or x∖C) and in q: of the same tokens, in order.

    cued: tokens of x that q begins with too; region "cue": from the first token of the cue on. ablated: tokens of x∖C
    that are found in this common part; for a cue at the end of the prompt, all that stands before it. The region has no
    effect there, since x∖C has no cue.
    """
    cue_start, cue_stop, shared = layout(case)
    if side == "cued":
        both = range(cue_start if region == "cue" else 0, shared)
        return both, both
    moved = len(case.prompt) - len(case.ablated)
    where = {at: at for at in range(min(cue_start, shared))}
    where |= {at: at + moved for at in range(cue_stop - moved, len(case.ablated)) if at + moved < shared}
    return tuple(where), tuple(where.values())


def choose_pairs(
    cases: Iterable[TokenizedCase],
    behaviors: Iterable[BehaviorPair],
    limit: int = 128,
    seed: int = 0,
    region: Region = "prefix",
) -> list[PromptPair]:
    """At most `limit` pairs, drawn by `seed`; no two of them share a question, so that they are independent.

    behaviors: of the policy that is to be patched, one per case, in the order of the cases. region "prefix": x is
    patched from its first token on, so x, x∖C and q of a pair have equal lengths. "cue": x is patched from the cue on;
    then what stands before the cue may be of any length, and tokens are aligned from the end of x. Raises UserError
    where there is no pair, and for cases that are answered in free text.
    """
    answered = [Answered(case, behavior) for case, behavior in zip(cases, behaviors, strict=True)]
    free = next((one.case.case_id for one in answered if not one.case.label_tokens), None)
    if free is not None:
        raise UserError(f"case {free!r} is answered in free text: patching reads logits of closed labels")
    answered.sort(key=lambda one: bits("patching", seed, one.case.case_id))
    changed = [one for one in answered if one.behavior.explanation.changed]
    partners: dict[Hashable, list[Answered]] = {}
    for one in answered:
        if not one.behavior.explanation.changed:
            partners.setdefault(_alignment(one.case, region), []).append(one)
    pairs: list[PromptPair] = []
    taken: set[Tokens] = set()  # questions
    for one in changed:
        partner = None if one.case.ablated in taken else _partner(one, partners, region, taken)
        if partner is not None and len(pairs) < limit:
            pairs.append(PromptPair(one, partner))
            taken |= {one.case.ablated, partner.case.ablated}
    if not pairs:
        raise UserError(
            f"no two prompts to patch between among {len(answered)} cases, {len(changed)} of them changed: a changed "
            "and an unchanged one need the same cue, aligned tokens and different answers; give more cases"
            + ("" if region == "cue" else ', or patch region "cue" alone, which needs no equal lengths')
        )
    return pairs


def _partner(
    one: Answered, partners: dict[Hashable, list[Answered]], region: Region, taken: set[Tokens]
) -> Answered | None:
    """The first unchanged case that fits."""
    for other in partners.get(_alignment(one.case, region), ()):
        fresh = other.case.ablated not in taken and other.case.ablated != one.case.ablated
        if fresh and other.behavior.cued != one.behavior.cued:
            return other
    return None


def _alignment(case: TokenizedCase, region: Region) -> Hashable:
    """Equal for two cases whose tokens are aligned: cue, what follows it in x and in q, and what may be answered."""
    where = layout(case)
    lengths = (len(case.prompt), len(case.ablated), where) if region == "prefix" else ()
    tail = case.question[where.shared :]
    return lengths, case.prompt[where.cue_start :], tail, case.labels, case.label_tokens, case.templates


def _common_suffix(a: Tokens, b: Tokens, after: int) -> int:
    """Length of the common end of two sequences, their first `after` tokens left out."""
    return common_prefix(a[after:][::-1], b[after:][::-1])
