"""Cases as token ids: prompts, the meta-question, answer tokens and explanation targets. Pure.

`tokenizer` is a transformers tokenizer with a chat template, but transformers is not imported here. Chat
templates write their own BOS and role tokens, so every other text is encoded without special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from introspect_ray.cases.explanations import all_explanations, parse, render
from introspect_ray.cases.label_tokens import Ids, encode, find_label_tokens
from introspect_ray.cases.wording import complete, wording_problem
from introspect_ray.errors import UserError, one_line
from introspect_ray.records import Case, Explanation, Message, Templates, TokenizedCase


class TemplateRefused(Exception):
    """The policy's chat template does not take a chat, for instance because of its roles. The message says why."""


def tokenize_case(
    case: Case, tokenizer: Any, answer_prefix: str = "", question: Sequence[Message] | None = None
) -> TokenizedCase:
    """A case as tokens.

    prompt, ablated: the chat up to where the answer starts, then the tokens of `answer_prefix`.
    question: q = x with the meta-question on a line of its own at the end of the last user turn, up to
    where the explanation starts, or the chat `question` instead; it has no answer prefix. Thinking modes are
    switched off, so that the answer is the next token. Raises UserError if the tokenizer has no chat template, the
    template refuses the roles, x or x∖C are nothing but <unk>, the labels cannot be told apart as tokens, the
    case's templates cannot be told apart, or an explanation does not survive encoding and decoding.
    """
    template = _template(tokenizer)
    prefix = encode(tokenizer, answer_prefix)
    free = case.response.kind == "free"
    wording = complete(case.templates)
    asked = with_meta_question(case) if question is None else question
    return TokenizedCase(
        case_id=case.case_id,
        labels=case.labels,
        label_tokens=() if free else _label_tokens(tokenizer, template, case.labels, answer_prefix),
        prompt=_known_chat(tokenizer, case.messages, case.case_id) + prefix,
        ablated=_known_chat(tokenizer, case.ablated_messages, case.case_id) + prefix,
        question=_chat(tokenizer, asked, case.case_id),
        explanations=dict(_explanations(tokenizer, template, case.labels, wording)),
        max_response=case.response.max_tokens if free else 0,
        templates=wording,
        group=case.group,
        metadata=json.dumps(dict(case.metadata), ensure_ascii=False) if case.metadata else "",
    )


def with_meta_question(case: Case) -> tuple[Message, ...]:
    """The chat of q: x with "\\n" + meta-question appended to its last user turn."""
    last = max(i for i, message in enumerate(case.messages) if message["role"] == "user")
    asked = {"role": "user", "content": f"{case.messages[last]['content']}\n{case.meta_question}"}
    return (*case.messages[:last], asked, *case.messages[last + 1 :])


def question_length(case: Case, tokenizer: Any) -> int:
    """Tokens of q, up to where the explanation starts. Raises UserError as tokenize_case does."""
    _template(tokenizer)
    return len(_chat(tokenizer, with_meta_question(case), case.case_id))


def decode_explanation(
    ids: Sequence[int], tokenizer: Any, labels: Sequence[str], templates: Templates
) -> Explanation | None:
    """The explanation in generated ids, with or without the end of turn; None if it does not parse.

    labels, templates: those of the TokenizedCase.
    """
    return parse(decode_turn(ids, tokenizer), labels, templates)


def decode_turn(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of generated ids up to the first end of turn; other special tokens stay in the text."""
    stops = {end_of_turn(tokenizer), tokenizer.eos_token_id}
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text: str = tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def max_explanation_tokens(case: TokenizedCase) -> int:
    """Length of the longest valid explanation of a case, its end of turn included."""
    return max(map(len, case.explanations.values()))


def max_response_tokens(case: TokenizedCase) -> int:
    """Most tokens of an answer of a case: of its longest label, or of a free text."""
    return case.max_response or max(map(len, case.label_tokens))


def longest_sequence(cases: Sequence[TokenizedCase]) -> int:
    """Tokens of the longest sequence of these cases: a prompt with its answer, or q with its explanation."""
    return max(
        max(
            max(len(case.prompt), len(case.ablated)) + max_response_tokens(case),
            len(case.question) + max_explanation_tokens(case),
        )
        for case in cases
    )


def end_of_turn(tokenizer: Any) -> int:
    """Id of the token that ends an assistant turn: the first special token the chat template puts there.

    Most chat models use their eos token (SmolLM2, Qwen: <|im_end|>; Llama 3: <|eot_id|>), but not all
    (Gemma: <end_of_turn>). Where a template closes turns with plain text, it is the eos token as well.
    Raises UserError if there is no such token at all, or the template cannot be used.
    """
    return _end_of_turn(tokenizer, _template(tokenizer))


@lru_cache(maxsize=16)
def _end_of_turn(tokenizer: Any, template: str) -> int:
    answer = "introspection"
    chat = ({"role": "user", "content": "question"}, {"role": "assistant", "content": answer})
    tail = _plain_chat(tokenizer, chat, add_generation_prompt=False).rpartition(answer)[2]
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    for token in encode(tokenizer, tail):
        if token in special and token != tokenizer.unk_token_id:
            return token
    eos: int | None = tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            "the tokenizer has no eos token and its chat template ends turns without a special token, so an "
            "explanation has no end: set eos_token in the policy's tokenizer_config.json"
        )
    return eos


def _template(tokenizer: Any) -> str:
    """The chat template. In the keys of the caches below, since a tokenizer's template may be replaced."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise UserError(
            "the policy's tokenizer has no chat template: use an instruction-tuned policy, or put a "
            "chat_template.jinja into its folder"
        )
    return str(template)


def _chat(tokenizer: Any, messages: Sequence[Message], case_id: str) -> Ids:
    try:
        return prompt_tokens(tokenizer, messages)
    except TemplateRefused as error:
        roles = [message["role"] for message in messages]
        raise UserError(f"case {case_id!r}: the policy's chat template refuses the roles {roles}: {error}") from None


def prompt_tokens(tokenizer: Any, messages: Sequence[Message]) -> Ids:
    """The tokens of a chat up to where the answer starts, thinking modes off. Raises TemplateRefused."""
    out = _apply(tokenizer, messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    return tuple(out["input_ids"] if isinstance(out, Mapping) or hasattr(out, "input_ids") else out)


def render_chat(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The text of a chat by the chat template, thinking modes off. Raises TemplateRefused."""
    text: str = _apply(tokenizer, messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    return text


def _plain_chat(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """`render_chat` of turns that every template takes. Raises UserError: the fault is the template's."""
    try:
        return render_chat(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    except TemplateRefused as error:
        raise UserError(
            f"the policy's chat template cannot be used ({error}): correct its chat_template, or take another policy"
        ) from None


def _apply(tokenizer: Any, messages: Sequence[Message], **options: bool) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), enable_thinking=False, **options)
    except Exception as error:  # jinja2's own errors, and whatever the expressions of a template raise
        kind = "" if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: "
        raise TemplateRefused(f"{kind}{one_line(error):.200}") from None


@lru_cache(maxsize=4096)
def _label_tokens(tokenizer: Any, template: str, labels: tuple[str, ...], answer_prefix: str) -> tuple[Ids, ...]:
    return find_label_tokens(tokenizer, labels, _generation_prompt(tokenizer), answer_prefix)


def _known_chat(tokenizer: Any, messages: Sequence[Message], case_id: str) -> Ids:
    """The chat as tokens. Raises UserError if there are none, or all that the messages themselves give is <unk>."""
    ids = _chat(tokenizer, messages, case_id)
    if not ids:
        raise UserError(
            f"case {case_id!r}: the policy's chat template writes nothing for it: correct its chat_template"
        )
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids:  # encoding the messages a second time is for these few cases
        own = set(chain.from_iterable(encode(tokenizer, message["content"]) for message in messages))
        if own == {unknown}:
            raise UserError(
                f"case {case_id!r}: all tokens of its prompt {messages[-1]['content']!r:.80} are "
                f"{tokenizer.unk_token}: use a policy whose tokenizer knows this language, or drop the case"
            )
    return ids


def _generation_prompt(tokenizer: Any) -> str:
    """Text between the last user turn and the answer, e.g. "<|im_start|>assistant\\n"; "" if it is not certain."""
    chat = ({"role": "user", "content": "question"},)
    closed, opened = (_plain_chat(tokenizer, chat, add_generation_prompt=flag) for flag in (False, True))
    return opened[len(closed) :] if opened.startswith(closed) else ""


@lru_cache(maxsize=4096)
def _explanations(
    tokenizer: Any, template: str, labels: tuple[str, ...], wording: Templates
) -> Mapping[Explanation, Ids]:
    """Target tokens of all explanations. Each is decoded and parsed again, and must come back as itself."""
    if problem := wording_problem(labels, wording):
        raise UserError(problem)
    targets = {}
    for explanation in all_explanations(labels):
        text = render(explanation, wording)
        ids = (*encode(tokenizer, text), end_of_turn(tokenizer))
        if decode_explanation(ids, tokenizer, labels, wording) != explanation:
            back = tokenizer.decode(list(ids[:-1]))
            raise UserError(
                f"the policy's tokenizer does not keep the explanation {text!r} (it decodes to {back!r}): choose "
                "labels and templates whose text survives encoding, and do not let labels differ by case or white "
                "space only"
            )
        targets[explanation] = ids
    return targets
