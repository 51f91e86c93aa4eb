"""What differs between x and x∖C: one deleted span (paper §2.1), or anything else. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from introspect_ray.cases.prefix import common_prefix
from introspect_ray.records import Message

REMOVED = "If the cue were removed, how would the assistant's answer change?"  # paper §2.1
REPLACED = "If the cue were replaced, how would the assistant's answer change?"


def deleted_span(messages: Sequence[Message], ablated: Sequence[Message]) -> str | None:
    """The one contiguous span that x has and x∖C lacks, as text; None if x∖C is no such deletion.

    A span may be whole turns; these are written as "role: content" lines. Example: "2+2?\\nHint: A" against "2+2?" ->
    "\\nHint: A".
    """
    full, short = _flat(messages), _flat(ablated)
    prefix = common_prefix(full, short)
    suffix = common_prefix(full[::-1], short[::-1])
    if len(short) >= len(full) or prefix + suffix < len(short):
        return None
    span = full[prefix : prefix + len(full) - len(short)]
    return span.replace("\x1f", ": ").replace("\x1e", "\n")


def default_meta_question(messages: Sequence[Message], ablated: Sequence[Message]) -> str:
    """The meta-question of a case that names none: whether its cue is removed or replaced."""
    return REPLACED if deleted_span(messages, ablated) is None else REMOVED


def _flat(turns: Sequence[Message]) -> str:
    """The chat as one string. Control characters mark the borders of turns, so that a whole turn is a span too."""
    return "".join(f"{turn['role']}\x1f{turn['content']}\x1e" for turn in turns)
