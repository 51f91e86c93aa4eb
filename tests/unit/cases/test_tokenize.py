"""Cases as tokens, on two tokenizers built here: ChatML over single bytes, and a word-level one like the organism's."""

import json
from dataclasses import replace

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from introspect_ray.cases.explanations import all_explanations, render
from introspect_ray.cases.tokenize import (
    decode_explanation,
    end_of_turn,
    longest_sequence,
    max_explanation_tokens,
    max_response_tokens,
    tokenize_case,
    with_meta_question,
)
from introspect_ray.errors import UserError
from introspect_ray.records import OWN_WORDING, Case, Explanation, Response, Templates

LETTERS = ("A", "B", "C", "D")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
SENTENCE = "The response would not change to from . ? ( ) Hint : If the hint were removed , how assistant ' s answer Q"
WORDS = ["<unk>", "<eos>", "<user>", "<reply>", "\n", *SENTENCE.split(), "A", "B", "C", "D"]


def byte_tokenizer(**more):
    """Byte-level BPE without merges: each byte is a token, so any longer label is several tokens."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=more.pop("merges", [])))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = {"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>", "bos_token": "<s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **{**special, **more})
    tokenizer.chat_template = CHATML
    return tokenizer


def word_tokenizer(words=WORDS):
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "removed", invert=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<eos>", additional_special_tokens=["<user>", "<reply>"]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<reply>' }}{{ m['content'] }}"
        "{{ '<eos>' if m['role'] == 'assistant' }}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
    )
    return tokenizer


def case(labels=LETTERS, messages=None):
    x = messages or ({"role": "user", "content": "Q?\nHint: A"},)
    return Case("q", x, ({"role": "user", "content": "Q?"},), "If the hint were removed, how?", labels)


def spelled(done, tokenizer):
    return [tokenizer.convert_ids_to_tokens(list(ids)) for ids in done.label_tokens]


def test_chatml_prompts_to_the_letter():
    """x, x∖C and q as text. Thinking is off; the template's own roles are the only special tokens: encoding the
    rendered text with special tokens would put a second <s> in front."""
    tokenizer = byte_tokenizer()
    done = tokenize_case(case(), tokenizer)
    close = "<|im_end|>\n<|im_start|>assistant\n<think></think>"
    assert tokenizer.decode(done.prompt) == f"<|im_start|>user\nQ?\nHint: A{close}"
    assert tokenizer.decode(done.ablated) == f"<|im_start|>user\nQ?{close}"
    assert tokenizer.decode(done.question) == f"<|im_start|>user\nQ?\nHint: A\nIf the hint were removed, how?{close}"
    assert all(isinstance(token, int) for token in done.prompt)


def test_one_bos_where_the_template_writes_one():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<s>" + CHATML
    assert tokenize_case(case(), tokenizer).prompt.count(tokenizer.bos_token_id) == 1


def test_answer_prefix_goes_on_prompts_only():
    tokenizer = byte_tokenizer()
    bare, done = (tokenize_case(case(), tokenizer, prefix) for prefix in ("", "("))
    (bracket,) = tokenizer.encode("(", add_special_tokens=False)
    assert done.prompt == (*bare.prompt, bracket) and done.ablated == (*bare.ablated, bracket)
    assert done.question == bare.question and done.label_tokens == bare.label_tokens == tuple(
        zip(tokenizer.convert_tokens_to_ids(list(LETTERS)))
    )


def test_meta_question_joins_the_last_user_turn():
    chat = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    asked = with_meta_question(case(messages=chat))
    assert asked[:2] == chat[:2] and asked[2]["content"] == "c\nIf the hint were removed, how?"
    assert chat[2]["content"] == "c"  # the case itself is left alone


@pytest.mark.parametrize("make", [byte_tokenizer, word_tokenizer])
def test_label_ids_are_the_letters(make):
    tokenizer = make()
    assert spelled(tokenize_case(case(), tokenizer), tokenizer) == [[letter] for letter in LETTERS]


def test_labels_after_a_space_are_one_rule_for_all():
    """ " x" is one token here for refuse and comply, "x" alone is many: all labels take the form with the space. Taking
    the first single token label by label would compare "a" with " bb"."""
    words = ["Ġa", "Ġb", "bb", "Ġbb"]
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {w: len(vocab) + i for i, w in enumerate(w for w in words if w not in vocab)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "a"), ("Ġ", "b"), ("Ġb", "b")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    assert spelled(tokenize_case(case(("a", "bb")), tokenizer), tokenizer) == [["Ġa"], ["Ġbb"]]


def test_labels_of_several_tokens_continue_the_prompt():
    """No rule makes NTA and YTA one token each, so they are spelled as they follow the prompt; where a label joins the
    answer prefix, as T joins N below, no token borders there, and they are spelled alone."""
    plain = byte_tokenizer()
    assert spelled(tokenize_case(case(("NTA", "YTA")), plain), plain) == [["N", "T", "A"], ["Y", "T", "A"]]
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"NT": 300}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("N", "T")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    merging = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    merging.chat_template = CHATML
    assert spelled(tokenize_case(case(("NTA", "Y")), merging), merging) == [["NT", "A"], ["Y"]]
    assert spelled(tokenize_case(case(("TA", "Y")), merging, "N"), merging) == [["T", "A"], ["Y"]]


def test_a_label_that_begins_another_is_refused_by_name():
    """Also after a space: " no" begins " not"."""
    with pytest.raises(
        UserError, match=r"labels 'no' and 'not' cannot be told apart: the tokens of 'no', \['n', 'o'\]"
    ):
        tokenize_case(case(("not", "no")), byte_tokenizer())


def test_an_unknown_label_is_refused():
    """A word-level tokenizer encodes every unknown word as <unk>; "B maybe" would be two tokens, one of them <unk>."""
    for label in ("maybe", "B maybe"):
        with pytest.raises(UserError, match=rf"label '{label}' is unknown .*<unk>"):
            tokenize_case(case(("A", label)), word_tokenizer())


def test_a_prompt_of_nothing_but_unknown_words_is_refused():
    """The template's own tokens are known; one known word is enough. Of x∖C it is asked too."""
    unknown, known = ({"role": "user", "content": text} for text in ("nihil novi", "nihil A"))
    tokenize_case(case(messages=(known,)), word_tokenizer())
    with pytest.raises(UserError, match=r"case 'q': all tokens of its prompt 'nihil novi' are <unk>"):
        tokenize_case(case(messages=(unknown,)), word_tokenizer())
    with pytest.raises(UserError, match="nihil novi"):
        tokenize_case(replace(case(), ablated_messages=(unknown,)), word_tokenizer())


def test_free_text_has_no_label_tokens():
    """Labels are the judge's verdicts then, also such as one tokenizer could not tell apart as answers."""
    free = replace(
        case(("no", "not")), response=Response("free", None, 40), group="role", metadata={"source": ["ä", 1]}
    )
    done = tokenize_case(free, byte_tokenizer())
    assert (done.label_tokens, done.max_response, done.labels) == ((), 40, ("no", "not"))
    assert list(done.explanations) == all_explanations(("no", "not"))
    assert done.group == "role" and json.loads(done.metadata) == {"source": ["ä", 1]}
    plain = tokenize_case(case(), byte_tokenizer())
    assert (plain.max_response, plain.group, plain.metadata) == (0, "", "")


def test_another_chat_may_be_the_question():
    tokenizer = byte_tokenizer()
    done = tokenize_case(case(), tokenizer, "(", question=({"role": "user", "content": "Why?"},))
    close = "<|im_end|>\n<|im_start|>assistant\n<think></think>"
    assert tokenizer.decode(done.question) == f"<|im_start|>user\nWhy?{close}"
    assert done.prompt == tokenize_case(case(), tokenizer, "(").prompt


def test_explanations_in_another_language_and_script():
    """Byte level: each is written, and read back from its tokens, with the display text of its label."""
    wording = Templates("答えは{label}に変わる。", "答えは{label}のまま。", (("A", "甲"),))
    tokenizer = byte_tokenizer()
    done = tokenize_case(replace(case(("A", "B")), templates=wording), tokenizer)
    assert done.templates == wording
    assert tokenizer.decode(done.explanations[Explanation(True, "A")][:-1]) == "答えは甲に変わる。"
    assert tokenizer.decode(done.explanations[Explanation(False, "B")][:-1]) == "答えはBのまま。"
    for explanation, ids in done.explanations.items():
        assert decode_explanation(ids, tokenizer, done.labels, done.templates) == explanation


def test_templates_that_two_labels_render_alike_are_refused():
    same = Templates(names=(("A", "yes"), ("B", "yes")))
    with pytest.raises(UserError, match=r"labels 'A' and 'B' alike, as 'The response would not change from yes\.'"):
        tokenize_case(replace(case(), templates=same), byte_tokenizer())


@pytest.mark.parametrize("make", [byte_tokenizer, word_tokenizer])
@pytest.mark.parametrize("labels", [LETTERS, ("B", "A")])
def test_explanations_end_the_turn_and_decode_to_themselves(make, labels):
    tokenizer = make()
    done = tokenize_case(case(labels), tokenizer)
    assert list(done.explanations) == all_explanations(labels)
    for explanation, ids in done.explanations.items():
        assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
        assert ids[:-1] == tuple(tokenizer.encode(render(explanation), add_special_tokens=False))
        for generated in (ids, ids[:-1], (*ids, 5, 6)):  # with, without the end of turn, and with what runs on after it
            assert decode_explanation(generated, tokenizer, labels, OWN_WORDING) == explanation
        assert decode_explanation(ids[:-2], tokenizer, labels, OWN_WORDING) is None  # cut: the full stop is missing


def test_special_tokens_inside_make_an_explanation_unparsed():
    """skip_special_tokens would hide that the policy wrote "<|im_start|>The response would change to B."."""
    tokenizer = byte_tokenizer()
    ids = tokenize_case(case(), tokenizer).explanations[all_explanations(LETTERS)[5]]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert decode_explanation((start, *ids), tokenizer, LETTERS, OWN_WORDING) is None
    assert decode_explanation((), tokenizer, LETTERS, OWN_WORDING) is None


def test_the_template_decides_the_end_of_turn():
    """A base tokenizer's eos is <s> here, the chat ends turns with <|im_end|>: training on <s> would teach the policy
    never to end a turn as its engine expects."""
    odd = byte_tokenizer(eos_token="<s>", additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    assert end_of_turn(odd) == odd.convert_tokens_to_ids("<|im_end|>") != odd.eos_token_id
    assert {ids[-1] for ids in tokenize_case(case(), odd).explanations.values()} == {end_of_turn(odd)}
    plain = byte_tokenizer()
    plain.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert end_of_turn(plain) == plain.eos_token_id
    none = byte_tokenizer(eos_token=None)
    none.chat_template = plain.chat_template
    with pytest.raises(UserError, match="no eos token"):
        end_of_turn(none)


def test_an_explanation_the_vocabulary_cannot_say_is_refused():
    with pytest.raises(UserError, match=r"does not keep the explanation 'The response would not change from A\.'"):
        tokenize_case(case(), word_tokenizer([w for w in WORDS if w != "response"]))


def test_no_chat_template_is_refused_with_the_remedy():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template: use an instruction-tuned policy"):
        tokenize_case(case(), tokenizer)


def test_a_template_that_refuses_the_roles_is_named():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' }}" + CHATML
    chat = ({"role": "system", "content": "s"}, {"role": "user", "content": "Q?"})
    with pytest.raises(UserError, match=r"case 'q': .* refuses the roles \['system', 'user'\]: no system role"):
        tokenize_case(case(messages=chat), tokenizer)


def test_lengths_by_hand():
    """Word level: q = <user> Q ? \\n Hint : A \\n If the hint were removed , how ? <reply> = 17 tokens; the longest
    explanation "The response would not change from A . <eos>" 9: 26. x has 8 tokens and one answer."""
    done = tokenize_case(case(), word_tokenizer())
    assert (len(done.prompt), len(done.ablated), len(done.question)) == (8, 4, 17)
    assert max_explanation_tokens(done) == 9 and longest_sequence([done, done]) == 26
    free = replace(done, label_tokens=(), max_response=19)
    assert longest_sequence([done, free]) == 27 and max_response_tokens(free) == 19  # 8 and 19
    assert max_response_tokens(replace(done, label_tokens=((1,), (2, 3, 4)))) == 3


def test_cases_are_data_and_no_templates_that_run():
    """What looks like a template in a case stays as it is, in prompts, questions and explanations."""
    text, tokenizer = "{{ 7 * 7 }} {% for x in y %} {label} {0.__class__} ${HOME}", byte_tokenizer()
    done = tokenize_case(replace(case(messages=({"role": "user", "content": text},)), meta_question=text), tokenizer)
    assert text in tokenizer.decode(done.prompt) and tokenizer.decode(done.question).count(text) == 2
    named = replace(case(), templates=Templates(names=(("A", "{{ 7 * 7 }} {0}"),)))
    said = [tokenizer.decode(ids) for ids in tokenize_case(named, tokenizer).explanations.values()]
    assert sum("{{ 7 * 7 }} {0}" in one for one in said) == 2  # changed to it, unchanged from it
