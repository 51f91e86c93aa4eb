"""Explanations as text: templates write them, and only what these templates can write is read back (paper §2.1).

An explanation has two parts, *changed?* = [y(x) != y(x∖C)] and *content* = y(x∖C). The paper's
template is "The response [would/would not] change to <y(x∖C)>."; in our own wording an unchanged response
"would not change from" its content, since it does not change to what it already is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from introspect_ray.records import OWN_WORDING, Explanation, Templates

LABEL = "{label}"
Pieces = tuple[str, ...]
_PIECE = re.compile(r"\w+|[^\w\s]")  # words and single punctuation marks, without white space


def render(explanation: Explanation, templates: Templates = OWN_WORDING) -> str:
    """Text of an explanation. Example: (True, "B") -> "The response would change to B."."""
    sentence = templates.changed if explanation.changed else templates.unchanged
    return sentence.replace(LABEL, dict(templates.names).get(explanation.content, explanation.content), 1)


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
    pieces = tuple(_PIECE.findall(text))
    candidates = by_pieces.get(_folded(pieces), ())
    if len(candidates) > 1:
        candidates = tuple(_closest(pieces, candidates))
    return candidates[0][0] if len(candidates) == 1 else None


def stated_alike(labels: Sequence[str], templates: Templates) -> tuple[Explanation, Explanation] | None:
    """Two explanations that one text states alike, or None. Labels may differ by case; the two sentences may not."""
    rendered, by_pieces = _readings(tuple(labels), templates)
    for same in rendered.values():
        if len(same) > 1:
            return same[0], same[1]
    for candidates in by_pieces.values():
        for one, _ in candidates:
            for other, _ in candidates:
                if one.changed != other.changed:
                    return one, other
    return None


@lru_cache(maxsize=4096)
def _readings(
    labels: tuple[str, ...], templates: Templates
) -> tuple[dict[str, tuple[Explanation, ...]], dict[Pieces, tuple[tuple[Explanation, Pieces], ...]]]:
    """What each text may mean: by the exact text, and by its pieces in any case, with their own case."""
    exact: dict[str, tuple[Explanation, ...]] = {}
    folded: dict[Pieces, tuple[tuple[Explanation, Pieces], ...]] = {}
    for explanation in all_explanations(labels):
        text = render(explanation, templates).strip()
        pieces = tuple(_PIECE.findall(text))
        exact[text] = (*exact.get(text, ()), explanation)
        folded[_folded(pieces)] = (*folded.get(_folded(pieces), ()), (explanation, pieces))
    return exact, folded


def _folded(pieces: Pieces) -> Pieces:
    return tuple(piece.casefold() for piece in pieces)


def _closest(pieces: Pieces, candidates: Sequence[tuple[Explanation, Pieces]]) -> Iterator[tuple[Explanation, Pieces]]:
    """The candidates that have the text's exact case where they differ from each other."""
    differ = [at for at in range(len(pieces)) if len({own[at] for _, own in candidates}) > 1]
    return (one for one in candidates if all(one[1][at] == pieces[at] for at in differ))
