"""What a pair of prompts is patched and read for: sequences, positions, and a logit difference. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from introspect_ray.cases.answers import label_nodes
from introspect_ray.cases.label_trie import label_branches
from introspect_ray.errors import UserError
from introspect_ray.patching.pairs import PromptPair, Region, Side, Tokens, patched_positions
from introspect_ray.records import Explanation, TokenizedCase

Direction = Literal["changed->unchanged", "unchanged->changed"]  # from the donor to the prompt that is patched
DIRECTIONS: tuple[Direction, ...] = ("changed->unchanged", "unchanged->changed")


class Intervention(NamedTuple):
    """One forward pass, `base`, into which activations of another one, `donor`, are patched one position at a time.

    The reading is logsumexp(logits of `plus`) - logsumexp(logits of `minus`) after the last token.
    """

    base: Tokens
    donor: Tokens
    base_at: tuple[int, ...]  # positions, aligned with donor_at
    donor_at: tuple[int, ...]
    plus: Tokens
    minus: Tokens

    @property
    def differs(self) -> tuple[bool, ...]:
        """Per position, whether anything up to it differs; else both have the same activation."""
        return tuple(
            self.base[: base + 1] != self.donor[: donor + 1] for base, donor in zip(self.base_at, self.donor_at)
        )


class Interventions(NamedTuple):
    """A pair in one direction. behavior: None where both prompts have the same answer, which no patch can move."""

    behavior: Intervention | None
    explanation: Intervention


def interventions(
    pair: PromptPair, direction: Direction, side: Side, region: Region, last: int | None = None
) -> Interventions:
    """The interventions on behaviour and on explanation at the same tokens, the last `last` of them (None: all).

    behaviour: the donor's label against the base's at the token where the two part, after the tokens that they share.
    explanation: "changed" against "unchanged" at the token that decides between them.
    """
    changed_first = direction == "changed->unchanged"
    donor, base = (pair.changed, pair.unchanged) if changed_first else (pair.unchanged, pair.changed)
    base_at, base_q = (_last(at, last) for at in patched_positions(base.case, side, region))
    donor_at, donor_q = (_last(at, last) for at in patched_positions(donor.case, side, region))
    before, plus, minus = _changed_or_not(base.case)
    explanation = Intervention(base.case.question + before, donor.case.question + before, base_q, donor_q, plus, minus)
    base_label, donor_label = (getattr(one.behavior, side) for one in (base, donor))
    if base_label == donor_label:
        return Interventions(None, explanation)
    said, plus, minus = _parting(base.case, donor_label, base_label)
    prompts = [one.case.prompt if side == "cued" else one.case.ablated for one in (base, donor)]
    behavior = Intervention(prompts[0] + said, prompts[1] + said, base_at, donor_at, plus, minus)
    return Interventions(behavior, explanation)


def _last(positions: Sequence[int], count: int | None) -> tuple[int, ...]:
    return tuple(positions if count is None else positions[-count:])


def _parting(case: TokenizedCase, label: str, other: str) -> tuple[Tokens, Tokens, Tokens]:
    """The tokens that two labels begin with, and the next token of each."""
    ids, others = (case.label_tokens[case.labels.index(name)] for name in (label, other))
    for node in label_nodes(case.label_tokens):
        depth = len(node.prefix)
        if ids[:depth] == others[:depth] == node.prefix and ids[depth] != others[depth]:
            return node.prefix, (ids[depth],), (others[depth],)
    raise AssertionError(f"no node of the label trie parts {label!r} and {other!r}")


def _changed_or_not(case: TokenizedCase) -> tuple[Tokens, Tokens, Tokens]:
    """The explanation tokens before the first choice, and the choices that lead to "changed" and to "unchanged".

    Raises UserError where a choice leads to both: the wording names the label before it says whether it changed.
    """
    branches = label_branches(tuple(case.explanations.items()))

    def leads_to(target: int | Explanation) -> set[bool]:
        if isinstance(target, Explanation):
            return {target.changed}
        return set().union(*map(leads_to, branches[target].leads_to))

    first = branches[0]
    changed, unchanged = (
        tuple(token for token, target in zip(first.tokens, first.leads_to) if leads_to(target) == {value})
        for value in (True, False)
    )
    if len(changed) + len(unchanged) != len(first.tokens):
        raise UserError(
            f"case {case.case_id!r}: its explanations name the label before they say whether it changed "
            f"({case.templates.changed!r}), so no token decides between the two: set task.changed and task.unchanged "
            "to sentences that part before {label}"
        )
    return first.prefix, changed, unchanged
