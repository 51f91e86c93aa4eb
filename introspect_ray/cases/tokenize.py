"""Cases as token ids: prompts, the meta-question, answer tokens and explanation targets. Pure.

`tokenizer` is a transformers tokenizer with a chat template, but transformers is not imported here. Chat
templates write their own BOS and role tokens, so every other text is encoded without special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from introspect_ray.cases.explanations import all_explanations, parse, render
from introspect_ray.errors import UserError
from introspect_ray.records import Case, Explanation, Message, TokenizedCase

Ids = tuple[int, ...]


def tokenize_case(case: Case, tokenizer: Any, answer_prefix: str = "") -> TokenizedCase:
    """A case as tokens.

    prompt, ablated: the chat up to where the answer starts, then the tokens of `answer_prefix`.
    question: q = x with the meta-question on a line of its own at the end of the last user turn, up to
    where the explanation starts; it has no answer prefix. Thinking modes are switched off, so that the
    answer is the next token. Raises UserError if the tokenizer has no chat template, the template refuses the
    roles, a label is not one token, or an explanation does not survive encoding and decoding.
    """
    template = _template(tokenizer)
    prefix = _encode(tokenizer, answer_prefix)
    return TokenizedCase(
        case_id=case.case_id,
        labels=case.labels,
        label_tokens=tuple((token,) for token in _label_ids(tokenizer, template, case.labels, answer_prefix)),
        prompt=_chat(tokenizer, case.messages, case.case_id) + prefix,
        ablated=_chat(tokenizer, case.ablated_messages, case.case_id) + prefix,
        question=_chat(tokenizer, with_meta_question(case), case.case_id),
        explanations=dict(_explanations(tokenizer, template, case.labels)),
    )


def with_meta_question(case: Case) -> tuple[Message, ...]:
    """The chat of q: x with "\\n" + meta-question appended to its last user turn."""
    last = max(i for i, message in enumerate(case.messages) if message["role"] == "user")
    asked = {"role": "user", "content": f"{case.messages[last]['content']}\n{case.meta_question}"}
    return (*case.messages[:last], asked, *case.messages[last + 1 :])


def decode_explanation(ids: Sequence[int], tokenizer: Any, labels: Sequence[str]) -> Explanation | None:
    """The explanation in generated ids, with or without the end of turn; None if it does not parse.

    Tokens after the first end of turn are dropped. Other special tokens stay in the text, which then
    does not parse.
    """
    return parse(decode_turn(ids, tokenizer), labels)


def decode_turn(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of generated ids up to the first end of turn; other special tokens stay in the text."""
    stops = {end_of_turn(tokenizer), tokenizer.eos_token_id}
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text: str = tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def max_explanation_tokens(case: TokenizedCase) -> int:
    """Length of the longest valid explanation of a case, its end of turn included."""
    return max(map(len, case.explanations.values()))


def longest_sequence(cases: Sequence[TokenizedCase]) -> int:
    """Tokens of the longest sequence of these cases: a prompt with its answer, or q with its explanation."""
    return max(max(len(c.prompt) + 1, len(c.ablated) + 1, len(c.question) + max_explanation_tokens(c)) for c in cases)


def end_of_turn(tokenizer: Any) -> int:
    """Id of the token that ends an assistant turn: the first special token the chat template puts there.

    Most chat models use their eos token (SmolLM2, Qwen: <|im_end|>; Llama 3: <|eot_id|>), but not all
    (Gemma: <end_of_turn>). Where a template closes turns with plain text, it is the eos token as well.
    Raises UserError if there is no such token at all.
    """
    return _end_of_turn(tokenizer, _template(tokenizer))


@lru_cache(maxsize=16)
def _end_of_turn(tokenizer: Any, template: str) -> int:
    answer = "introspection"
    chat = ({"role": "user", "content": "question"}, {"role": "assistant", "content": answer})
    tail = _render(tokenizer, chat, add_generation_prompt=False).rpartition(answer)[2]
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    for token in _encode(tokenizer, tail):
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
        out = tokenizer.apply_chat_template(
            list(messages), tokenize=True, add_generation_prompt=True, enable_thinking=False, return_dict=True
        )
    except Exception as error:  # jinja2's TemplateError, by name: jinja2 is transformers' dependency, not ours
        if not type(error).__module__.startswith("jinja2"):
            raise
        roles = [message["role"] for message in messages]
        raise UserError(f"case {case_id!r}: the policy's chat template refuses the roles {roles}: {error}") from None
    return tuple(out["input_ids"] if isinstance(out, Mapping) or hasattr(out, "input_ids") else out)


def _render(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
    )
    return text


def _encode(tokenizer: Any, text: str) -> Ids:
    return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()


@lru_cache(maxsize=64)
def _label_ids(tokenizer: Any, template: str, labels: tuple[str, ...], answer_prefix: str) -> Ids:
    """One token per label, by the first rule that fits all labels: after the prompt, alone, or after a space."""
    opening = _generation_prompt(tokenizer)
    before = _encode(tokenizer, opening) + _encode(tokenizer, answer_prefix)
    tried: dict[str, tuple[Ids, ...]] = {}

    def continued(label: str) -> Ids:
        after = _encode(tokenizer, opening + answer_prefix + label)
        return after[len(before) :] if after[: len(before)] == before else ()

    rules: dict[str, Callable[[str], Ids]] = {
        "after the prompt": continued,
        "alone": lambda label: _encode(tokenizer, label),
        "after a space": lambda label: _encode(tokenizer, f" {label}"),
    }
    for name, rule in rules.items():
        tried[name] = tuple(rule(label) for label in labels)
        known = tokenizer.unk_token_id is None or all(tokenizer.unk_token_id not in ids for ids in tried[name])
        if known and all(len(ids) == 1 for ids in tried[name]) and len(set(tried[name])) == len(labels):
            return tuple(ids[0] for ids in tried[name])
    raise UserError(_label_problem(tokenizer, labels, tried["alone"]))


def _label_problem(tokenizer: Any, labels: Sequence[str], alone: Sequence[Ids]) -> str:
    """A message that names the label to blame and the remedy. ids: the tokens of each label alone."""
    remedy = "choose short labels that are one token each, such as letters"
    for label, ids in zip(labels, alone, strict=True):
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            tokens = tokenizer.convert_ids_to_tokens(list(ids))
            return f"label {label!r} is not one token of the policy's tokenizer but {len(ids)}: {tokens}; {remedy}"
    return f"labels {tuple(labels)} share answer tokens {[ids[0] for ids in alone]}; {remedy} and differ"


def _generation_prompt(tokenizer: Any) -> str:
    """Text between the last user turn and the answer, e.g. "<|im_start|>assistant\\n"; "" if it is not certain."""
    chat = ({"role": "user", "content": "question"},)
    closed, opened = (_render(tokenizer, chat, add_generation_prompt=flag) for flag in (False, True))
    return opened[len(closed) :] if opened.startswith(closed) else ""


@lru_cache(maxsize=64)
def _explanations(tokenizer: Any, template: str, labels: tuple[str, ...]) -> Mapping[Explanation, Ids]:
    """Target tokens of all explanations. Each is decoded and parsed again, and must come back as itself."""
    targets = {}
    for explanation in all_explanations(labels):
        text = render(explanation)
        ids = (*_encode(tokenizer, text), end_of_turn(tokenizer))
        if decode_explanation(ids, tokenizer, labels) != explanation:
            back = tokenizer.decode(list(ids[:-1]))
            raise UserError(
                f"the policy's tokenizer does not keep the explanation {text!r} (it decodes to {back!r}): "
                "choose labels whose text survives encoding, and do not let them differ by case or white space only"
            )
        targets[explanation] = ids
    return targets
