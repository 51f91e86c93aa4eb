"""Explanations as text: a fixed template writes them, and only that template is read back (paper §2.1).

An explanation has two parts, *changed?* = [y(x) != y(x∖C)] and *content* = y(x∖C). The paper's
template is "The response [would/would not] change to <y(x∖C)>."; here an unchanged response "would
not change from" its content, since it does not change to what it already is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from introspect_ray.records import Explanation

_HEADS = {True: "The response would change to", False: "The response would not change from"}
_PIECE = re.compile(r"\w+|[^\w\s]")  # words and single punctuation marks, without white space


def render(explanation: Explanation) -> str:
    """Text of an explanation. Example: (True, "B") -> "The response would change to B."."""
    return f"{_HEADS[explanation.changed]} {explanation.content}."


def all_explanations(labels: Sequence[str]) -> list[Explanation]:
    """All 2 * len(labels) explanations: the unchanged ones in label order, then the changed ones."""
    return [Explanation(changed, label) for changed in (False, True) for label in labels]


def parse(text: str, labels: Sequence[str]) -> Explanation | None:
    """The explanation that `text` states, or None if the template cannot have produced it.

    Upper and lower case and white space do not matter, also before the full stop (a word-level
    tokenizer decodes "B ."), but words may not be joined or split. Labels that differ only in case
    ("a", "A") are told apart by their exact case; if that does not decide, the answer is None.
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
    """The one label made of these pieces, by exact case or else by any case; None if there is none or several."""
    for fold in (str, str.casefold):
        wanted = [fold(p) for p in pieces]
        found = [label for label in labels if [fold(p) for p in _PIECE.findall(label)] == wanted]
        if found:
            return found[0] if len(found) == 1 else None
    return None
