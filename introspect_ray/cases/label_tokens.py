"""The tokens by which a policy writes each label of a closed set. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

from introspect_ray.errors import UserError

Ids = tuple[int, ...]


def find_label_tokens(tokenizer: Any, labels: tuple[str, ...], opening: str, answer_prefix: str) -> tuple[Ids, ...]:
    """The tokens of each label, all by one rule: as they follow the prompt, alone, or after a space.

    The first rule by which every label is a single token of its own is taken. If there is none, the first one by which
    the labels have tokens, none is <unk>, and no label's tokens begin another's: greedy decoding could not tell where
    the shorter one ends. opening: text between the last user turn and the answer. Raises UserError naming the labels
    to blame.
    """
    before = encode(tokenizer, opening) + encode(tokenizer, answer_prefix)

    def continued(label: str) -> Ids:
        after = encode(tokenizer, opening + answer_prefix + label)
        return after[len(before) :] if after[: len(before)] == before else ()

    rules: tuple[Callable[[str], Ids], ...] = (
        continued,
        lambda label: encode(tokenizer, label),
        lambda label: encode(tokenizer, f" {label}"),
    )
    tried = [tuple(rule(label) for label in labels) for rule in rules]
    usable = [tokens for tokens in tried if not _problem(tokenizer, labels, tokens)]
    for tokens in usable:
        if all(len(ids) == 1 for ids in tokens):
            return tokens
    if usable:
        return usable[0]
    alone = tried[1]
    raise UserError(f"{_problem(tokenizer, labels, alone)}; choose other labels, or another policy")


def _problem(tokenizer: Any, labels: Sequence[str], tokens: Sequence[Ids]) -> str | None:
    """Why a policy cannot answer with these tokens of the labels, or None."""
    for label, ids in zip(labels, tokens, strict=True):
        if not ids or tokenizer.unk_token_id in ids:
            shown = tokenizer.convert_ids_to_tokens(list(ids))
            return f"label {label!r} is unknown to the policy's tokenizer, its tokens are {shown}"
    for (one, short), (other, long) in permutations(zip(labels, tokens, strict=True), 2):
        if long[: len(short)] == short:
            shown = tokenizer.convert_ids_to_tokens(list(short))
            return f"labels {one!r} and {other!r} cannot be told apart: the tokens of {one!r}, {shown}, begin {other!r}"
    return None


def encode(tokenizer: Any, text: str) -> Ids:
    """The tokens of a text by itself, without special tokens."""
    return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()
