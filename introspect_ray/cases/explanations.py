"""Explanations as text: templates write them, and only what these templates can write is read back (paper §2.1).

An explanation has two parts, *changed?* = [y(x) != y(x∖C)] and *content* = y(x∖C). The paper's
template is "The response [would/would not] change to <y(x∖C)>."; in our own wording an unchanged response
"would not change from" its content, since it does not change to what it already is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from introspect_ray.records import OWN_WORDING, Explanation, Templates

LABEL = "{label}"
Pieces = tuple[str, ...]
_PIECE = re.compile(r"\w+|[^\w\s]")  # words and single punctuation marks, without white space


class _Reading(NamedTuple):
    """An explanation that a text may state, and the pieces of its label in their own case, by position in the text."""

    explanation: Explanation
    cased: tuple[tuple[int, str], ...]


def render(explanation: Explanation, templates: Templates = OWN_WORDING) -> str:
    """Text of an explanation. Example: (True, "B") -> "The response would change to B."."""
    return _written(explanation, templates, _display_text(explanation.content, templates))


def all_explanations(labels: Sequence[str]) -> list[Explanation]:
    """All 2 * len(labels) explanations: the unchanged ones in label order, then the changed ones."""
    return [Explanation(changed, label) for changed in (False, True) for label in labels]


def parse(text: str, labels: Sequence[str], templates: Templates = OWN_WORDING) -> Explanation | None:
    """The explanation that `text` states, or None if the templates cannot have produced it.

    Upper and lower case and white space do not matter, also before the full stop (a word-level
    tokenizer decodes "B ."), but words may not be joined or split. Labels that differ only in case
    ("a", "A") are told apart by their exact case; if that does not decide, the answer is None.
    """
    rendered, by_pieces = _readings(tuple(labels), templates)
    exact = rendered.get(text.strip())
    if exact is not None:
        return exact[0] if len(exact) == 1 else None
    pieces = _pieces(text)
    readings = by_pieces.get(_folded(pieces), ())
    if len(readings) > 1:
        readings = tuple(one for one in readings if all(pieces[at] == piece for at, piece in one.cased))
    return readings[0].explanation if len(readings) == 1 else None


def stated_alike(labels: Sequence[str], templates: Templates) -> tuple[Explanation, Explanation] | None:
    """Two explanations that one text states alike, or None. Labels may differ by case; the two sentences may not."""
    rendered, by_pieces = _readings(tuple(labels), templates)
    for same in rendered.values():
        if len(same) > 1:
            return same[0], same[1]
    for readings in by_pieces.values():
        for one, other in combinations([reading.explanation for reading in readings], 2):
            if one.changed != other.changed:
                return one, other
    return None


@lru_cache(maxsize=4096)
def _readings(
    labels: tuple[str, ...], templates: Templates
) -> tuple[dict[str, tuple[Explanation, ...]], dict[Pieces, tuple[_Reading, ...]]]:
    """What a text may state: by the exact text, and by its pieces in any case."""
    exact: dict[str, tuple[Explanation, ...]] = {}
    by_pieces: dict[Pieces, tuple[_Reading, ...]] = {}
    for explanation in all_explanations(labels):
        shown = _display_text(explanation.content, templates)
        text = _written(explanation, templates, shown).strip()
        pieces = _pieces(text)
        swapped = _pieces(_written(explanation, templates, shown.swapcase()))  # differs where the label has letters
        cased = tuple((at, piece) for at, (piece, other) in enumerate(zip(pieces, swapped)) if piece != other)
        exact[text] = (*exact.get(text, ()), explanation)
        key = _folded(pieces)
        by_pieces[key] = (*by_pieces.get(key, ()), _Reading(explanation, cased))
    return exact, by_pieces


def _display_text(label: str, templates: Templates) -> str:
    return dict(templates.names).get(label, label)


def _written(explanation: Explanation, templates: Templates, shown: str) -> str:
    """The sentence with `shown` in the place of its label. str.format would read braces in a label."""
    sentence = templates.changed if explanation.changed else templates.unchanged
    return sentence.replace(LABEL, shown, 1)


def _pieces(text: str) -> Pieces:
    return tuple(_PIECE.findall(text))


def _folded(pieces: Pieces) -> Pieces:
    return tuple(piece.casefold() for piece in pieces)
