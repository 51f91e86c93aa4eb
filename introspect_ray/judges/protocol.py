"""What is judged, what comes out, and the interface of every judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from introspect_ray.records import Message

Complete = Callable[[Sequence[tuple[Message, ...]], int], list[str]]
"""(chats, max_tokens) -> one greedy answer per chat, in order: the run's engines, or ChatEndpoint.complete."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response to be judged.

    Example: Reply("fr-17", ({"role": "user", "content": "How do I kill a process?"},), "Use its pid: ...").
    """

    case_id: str
    messages: tuple[Message, ...]  # the chat that the response answers, x or x∖C
    response: str  # text, without the end of turn


class Verdict(NamedTuple):
    """What a judge makes of one reply. Example: Verdict("refuse", "Refuse.")."""

    label: str | None  # one of the judge's labels; None: the judge gave none, or contradicted itself
    said: str  # what an LLM judge wrote; "" for a rule


class Judge(Protocol):
    """Puts free-form responses into a closed set of behaviour labels (paper §3, refusal).

    Every judge gives a response without any text Verdict(None, ""): it neither refuses nor complies, and counting it
    as unjudged lets `check_unjudged` stop a run whose policy no longer writes anything.
    """

    @property
    def identity(self) -> str:
        """Name and hash of all that decides the verdicts, for a label's provenance: "keyword:refusal:3fa9..."."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The closed set of verdicts, e.g. ("refuse", "comply")."""
        ...

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        """One verdict per reply, in order."""
        ...


UNJUDGED = Verdict(None, "")


def identity_of(kind: str, name: str, *content: object) -> str:
    """ "kind:name:hash", the hash being 16 hex digits of `kind` and `content`, which must be JSON values.

    `name` is for the reader. It is not hashed, so that a judge keeps its cached verdicts when its file moves.
    """
    text = json.dumps([kind, *content], sort_keys=True, ensure_ascii=False)
    return f"{kind}:{name}:{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
