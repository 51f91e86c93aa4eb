"""Auxiliary, behaviour-only data as tokens, each with a mark that says whether it is trained on (paper eq. 5). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from introspect_ray.cases.label_tokens import Ids, encode
from introspect_ray.cases.tokenize import TemplateRefused, end_of_turn, render_chat
from introspect_ray.errors import UserError
from introspect_ray.records import AuxiliaryText, Message

MARK = "\u2063introspection\u2063"  # stands for a turn's content where it is looked for; no chat contains it
PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "question"},
    {"role": "assistant", "content": "answer"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "more"},
)


class NotRendered(Exception):
    """The policy's chat template does not render a chat, or not with the content of its turns. The message says why."""


def check_template(tokenizer: Any, policy: str) -> None:
    """Refuse a chat template from which the assistant's turns cannot be read off: UserError naming the policy."""
    try:
        _assistant_spans(tokenizer, PROBE, _render(tokenizer, PROBE))
    except NotRendered as error:
        raise UserError(
            f"auxiliary.tokens=assistant: policy {policy!r}: {error}; set auxiliary.tokens=all, or use a policy with "
            "another template"
        ) from None


def tokenize_chat(
    text_id: str, messages: Sequence[Message], tokenizer: Any, trained: Literal["assistant", "all"], max_tokens: int
) -> AuxiliaryText:
    """A chat as the policy's template renders it, cut after `max_tokens` tokens.

    trained: assistant: the content of each assistant turn that is not blank, and its end of turn; all: every token.
    The first token never is. As for explanations, the content is encoded by itself, as the policy would continue the
    prompt, and thinking modes are off. Raises NotRendered.
    """
    text = _render(tokenizer, messages) if messages else ""
    spans = _assistant_spans(tokenizer, messages, text) if trained == "assistant" else []
    stop = end_of_turn(tokenizer) if spans else None
    tokens: list[int] = []
    targets: list[bool] = []
    at = 0
    for start, end in [*spans, (len(text), len(text))]:
        between = encode(tokenizer, text[at:start])
        closing = between.index(stop) + 1 if at and stop in between else 0  # the end of the turn before
        content = encode(tokenizer, text[start:end])
        tokens += between + content
        targets += [True] * closing + [trained == "all"] * (len(between) - closing) + [True] * len(content)
        at = end
    return _text(text_id, tokens[:max_tokens], targets[:max_tokens])


def tokenize_plain(text_id: str, text: str, tokenizer: Any, max_tokens: int) -> Iterator[AuxiliaryText]:
    """Plain text in pieces of at most `max_tokens` tokens, of which all but the first are trained on.

    Each piece starts with the BOS token where the tokenizer puts one before a text.
    """
    bos = tokenizer.bos_token_id
    start: Ids = (bos,) if bos is not None and list(tokenizer.encode(""))[:1] == [bos] else ()
    body, length = encode(tokenizer, text), max_tokens - len(start)
    for piece, at in enumerate(range(0, len(body), length)):
        tokens = start + body[at : at + length]
        yield _text(f"{text_id}.{piece}", tokens, [True] * len(tokens))


def _text(text_id: str, tokens: Sequence[int], targets: Sequence[bool]) -> AuxiliaryText:
    return AuxiliaryText(text_id, tuple(tokens), (False, *targets[1:])[: len(tokens)])


def _assistant_spans(tokenizer: Any, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
    """Where the content of each assistant turn that is not blank stands in the rendered chat: (start, end).

    Each turn is rendered once more with a mark for its content. What stands around the mark stands around the content.
    This needs no turn's rendering to be independent of later turns: Qwen3's template writes an empty thought before the
    last answer only.
    """
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or not message["content"].strip():
            continue
        marked = _render(tokenizer, [*messages[:number], {**message, "content": MARK}, *messages[number + 1 :]])
        before, _, after = marked.partition(MARK)
        end = len(text) - len(after)
        if marked.count(MARK) != 1 or end < len(before) or text[: len(before)] != before or text[end:] != after:
            raise NotRendered("the chat template does not render an assistant turn as its content between fixed texts")
        spans.append((len(before), end))
    return spans


def _render(tokenizer: Any, messages: Sequence[Message]) -> str:
    try:
        return render_chat(tokenizer, messages, add_generation_prompt=False)
    except TemplateRefused as error:
        raise NotRendered(f"the chat template refuses the turns ({error})") from None
