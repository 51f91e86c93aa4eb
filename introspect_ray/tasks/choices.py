"""Multiple choice in free text: the letters of the options, and the request for one of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from string import ascii_uppercase
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.records import Message
from introspect_ray.rng import bits

INSTRUCTION = "Answer with the letter of the correct choice only."
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[).:][ \t]+\S", re.MULTILINE)


def option_letters(text: str) -> tuple[str, ...]:
    """The letters of the last list of options in `text`: lines such as "(A) ...", "A. ..." or "A: ...", from A on.

    Options of earlier questions (few-shot prompts) do not count. () if there are fewer than two.
    """
    found = _OPTION.findall(text)
    if "A" not in found:
        return ()
    last = found[len(found) - 1 - found[::-1].index("A") :]
    letters = tuple(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, ascii_uppercase)))
    return letters if len(letters) >= 2 else ()


def options_text(choices: Sequence[str]) -> str:
    """The lines "(A) ...", "(B) ..."."""
    return "\n".join(f"({letter}) {choice}" for letter, choice in zip(ascii_uppercase, choices))


def chat(turns: Any, where: str, *, role: str = "role", content: str = "content") -> tuple[Message, ...]:
    """A chat from a list of {role, content}, whatever these two keys are called and however roles are named.

    Content may be a list of {"type": "text", "text"}, as Inspect writes it. Raises UserError naming the turn.
    """
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise UserError(
            f"{where}: expected a list of turns, found {type(turns).__name__}; write [{{{role}, {content}}}]"
        )
    made = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or role not in turn or content not in turn:
            raise UserError(f"{where}: turn {number} is no object with the keys {role!r} and {content!r}; correct it")
        if turn[role] not in ROLES:
            raise UserError(f"{where}: turn {number} has the role {turn[role]!r}; roles are {', '.join(ROLES)}")
        made.append({"role": ROLES[turn[role]], "content": _text(turn[content], f"{where}: turn {number}")})
    return tuple(made)


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where} has content that is no text ({type(content).__name__}); keep text turns only")
    return "".join(map(str, texts))


def user(text: str) -> tuple[Message, ...]:
    """A chat of one user turn."""
    return ({"role": "user", "content": text},)


def text_of(messages: Sequence[Message]) -> str:
    """The content of all turns, one after the other."""
    return "\n".join(message["content"] for message in messages)


def content_id(name: str, *content: object) -> str:
    """An id made from what a case says: rows that say the same have the same id, in every order of rows."""
    return f"{name}-{bits(*content):016x}"
