"""Text made comparable: what responses, word lists and verdicts go through before they are matched."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_APOSTROPHES = dict.fromkeys(map(ord, "’‘‛ʼ´`′"), "'")
_MARKUP = re.compile(r"[*_#~>\"“”„‟«»]|(?<!\w)'|'(?!\w)")


def normalise(text: str) -> str:
    """Case folded, NFKC, one space between words; quotation marks and Markdown's signs removed.

    Apostrophes inside words stay, all of them straight. Example: "  **I’m**\\nSORRY" -> "i'm sorry".
    """
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold()
    return " ".join(_MARKUP.sub("", text).split())


def whole_words(phrases: Iterable[str]) -> str:
    """Regular expression of any of the phrases as whole words, longest first. Never matches if there are none.

    Scripts without upper and lower case (Chinese, Thai, ...) may not put spaces between words: there a phrase also
    matches inside a longer run of letters.
    """
    parts = []
    for phrase in sorted(phrases, key=lambda phrase: (-len(phrase), phrase)):
        before = r"(?<![\w'])" if _separated(phrase[0]) else ""
        after = r"(?![\w'])" if _separated(phrase[-1]) else ""
        parts.append(f"{before}{re.escape(phrase)}{after}")
    return "|".join(parts) or r"(?!)"


def _separated(letter: str) -> bool:
    return letter.isdigit() or letter.upper() != letter
