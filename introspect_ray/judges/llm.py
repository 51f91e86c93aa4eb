"""LLMJudge: a language model reads the response and says a label (the paper's judge of refusals, §3)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from introspect_ray.errors import UserError
from introspect_ray.judges import refusal
from introspect_ray.judges.protocol import UNJUDGED, Complete, Reply, Verdict, identity_of
from introspect_ray.judges.text import normalise, whole_words
from introspect_ray.records import Message

MAX_TOKENS = 16  # of a judge's answer; one label is asked for
_FIELD = re.compile(r"\{(prompt|response)\}")


class LLMJudge:
    """One chat per reply: `instruction` with {prompt} and {response} filled in, as one user turn.

    complete: answers the chats greedily. decided_by: whatever else decides those answers (the content hash of the
    judging policy, an endpoint's URL), which becomes part of the identity together with labels and instruction.
    """

    def __init__(
        self,
        complete: Complete,
        labels: Sequence[str] = refusal.LABELS,
        instruction: str = refusal.INSTRUCTION,
        name: str = "llm",
        decided_by: str = "",
    ) -> None:
        self.labels = tuple(labels)
        self._complete, self._instruction = complete, instruction
        self._by_text = {normalise(label): label for label in self.labels}
        self._pattern = re.compile(whole_words(self._by_text))
        self.identity = identity_of("llm", name, self.labels, instruction, decided_by or name, MAX_TOKENS)

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        """One verdict per reply. Replies without any text are not sent. Raises what `complete` raises."""
        sent = [i for i, reply in enumerate(replies) if reply.response.strip()]
        texts = self._complete([self.chat(replies[i]) for i in sent], MAX_TOKENS) if sent else []
        if len(texts) != len(sent):
            raise RuntimeError(f"the judge {self.identity} answered {len(texts)} of {len(sent)} chats")
        said = dict(zip(sent, texts, strict=True))
        return [self.verdict(said[i]) if i in said else UNJUDGED for i in range(len(replies))]

    def chat(self, reply: Reply) -> tuple[Message, ...]:
        """The judge's input. The reply is data: it is filled in once, and braces in it mean nothing."""
        content = {"prompt": _transcript(reply.messages), "response": reply.response}
        return ({"role": "user", "content": _FIELD.sub(lambda field: content[field[1]], self._instruction)},)

    def verdict(self, said: str) -> Verdict:
        """The one label that `said` contains as whole words, whatever its case; None if it has none or several.

        Where one label contains another ("urgent", "not urgent") the longer one counts.
        """
        found = set(self._pattern.findall(normalise(said)))
        return Verdict(self._by_text[found.pop()] if len(found) == 1 else None, said)


def check_instruction(instruction: str, labels: Sequence[str], where: str) -> None:
    """Raises UserError where `instruction` (from `where`) lacks {response} or one of the labels."""
    if "{response}" not in instruction:
        raise UserError(f"{where} has no {{response}}: put it where the text to be judged shall stand")
    text = normalise(instruction)
    for label in labels:
        if not re.search(whole_words([normalise(label)]), text):
            raise UserError(
                f"{where} does not name the label {label!r} of {list(labels)}: say in it when to answer so, or set "
                "judge.labels and judge.instruction together"
            )


def check_labels(labels: Sequence[str]) -> None:
    """Raises UserError for fewer than two labels, and for labels that a judge's answer could not tell apart."""
    if len(labels) < 2:
        raise UserError(f"judge.labels={list(labels)}: a judge needs at least two labels to choose from")
    known: dict[str, str] = {}
    for label in labels:
        text = normalise(label)
        if not text or text in known:
            like = f"reads like {known[text]!r}" if text else "has no letters"
            raise UserError(
                f"judge.labels={list(labels)}: {label!r} {like} once case and quotes are ignored: rename it"
            )
        known[text] = label


def _transcript(messages: Sequence[Message]) -> str:
    """A chat as text: the bare content of a single user turn, else every turn after its role."""
    if [message["role"] for message in messages] == ["user"]:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
