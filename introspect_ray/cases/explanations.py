"""Explanations as text: deterministic templates out, exactly those templates in (paper §2.1, SPEC §1).

An explanation has two parts, *changed?* = [y(x) != y(x∖C)] and *content* = y(x∖C). The paper's
template is "The response [would/would not] change to <y(x∖C)>."; SPEC §1 words the unchanged one
"would not change from", which this module follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from introspect_ray.records import Explanation

_HEADS = {True: "The response would change to", False: "The response would not change from"}
_PIECE = re.compile(r"\w+|[^\w\s]")  # words and single punctuation marks: white space drops out


def render(explanation: Explanation) -> str:
    """Text of an explanation. Example: (True, "B") -> "The response would change to B."."""
    return f"{_HEADS[explanation.changed]} {explanation.content}."


def all_explanations(labels: Sequence[str]) -> list[Explanation]:
    """All 2 * len(labels) explanations: the unchanged ones in label order, then the changed ones."""
    return [Explanation(changed, label) for changed in (False, True) for label in labels]


def parse(text: str, labels: Sequence[str]) -> Explanation | None:
    """The explanation that `text` states, or None if the template cannot have produced it.

    Case and white space are free, also before the full stop and inside (a word-level tokenizer
    decodes "B ."); words may not be glued or split. Labels that differ only in case ("a", "A") are
    told apart by their exact case; if that does not decide between them the text is unparsed.
    """
    exact = [e for e in all_explanations(labels) if text.strip() == render(e)]
    if exact:
        return exact[0] if len(exact) == 1 else None
    pieces = _PIECE.findall(text)
    for changed, head in _HEADS.items():
        words = _PIECE.findall(head.casefold())
        start, content, stop = pieces[: len(words)], pieces[len(words) : -1], pieces[-1:]
        if [p.casefold() for p in start] == words and stop == ["."]:
            label = _match_label(content, labels)
            return None if label is None else Explanation(changed, label)
    return None


def _match_label(pieces: list[str], labels: Sequence[str]) -> str | None:
    """The one label made of these pieces, first with exact case, then without; None if no or several."""
    for fold in (str, str.casefold):
        wanted = [fold(p) for p in pieces]
        found = [label for label in labels if [fold(p) for p in _PIECE.findall(label)] == wanted]
        if found:
            return found[0] if len(found) == 1 else None
    return None
