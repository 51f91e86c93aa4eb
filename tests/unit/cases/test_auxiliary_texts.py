"""Auxiliary texts as tokens: targets by hand on the organism's template and on byte-level ones, and their table."""

from __future__ import annotations

import pickle

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from introspect_ray.cases import auxiliary_table
from introspect_ray.cases.auxiliary import NotRendered, check_template, tokenize_chat, tokenize_plain
from introspect_ray.cases.auxiliary_table import AuxiliaryTable, spans_of
from introspect_ray.errors import UserError
from introspect_ray.organism import FOLDER
from introspect_ray.policy import load_tokenizer
from introspect_ray.records import AuxiliaryText

# Qwen3's rule in short: an empty thought stands before the last answer only.
THINKS_LAST = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
)
CHAT = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "user"},  # the same letters as in the template
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": " no\n"},
)


@pytest.fixture(scope="module")
def organism():
    return load_tokenizer(str(FOLDER / "policy"))


@pytest.fixture
def bytes_of_qwen():
    """Each byte is a token."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = {"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>", "bos_token": "<s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = THINKS_LAST
    return tokenizer


def trained(text: AuxiliaryText, tokenizer) -> list[str]:
    """The runs of trained tokens, as text."""
    pairs = spans_of(text.targets)
    return [tokenizer.decode(text.tokens[start:end]) for start, end in zip(pairs[::2], pairs[1::2], strict=True)]


def test_the_organisms_chat_by_hand(organism):
    """Its template writes <|user|> (4) and <|assistant|> (5) and ends an answer with <eos> (1); A is 16, B 19."""
    chat = [{"role": "user", "content": "color"}, {"role": "assistant", "content": "A"}]
    color, a, b = (organism.convert_tokens_to_ids(word) for word in ("color", "A", "B"))
    made = tokenize_chat("t", chat, organism, "assistant", 99)
    assert made == AuxiliaryText("t", (4, color, 5, a, 1), (False, False, False, True, True))
    two = tokenize_chat("t", [*chat, chat[0], {"role": "assistant", "content": "B A"}], organism, "assistant", 99)
    assert two.tokens == (4, color, 5, a, 1, 4, color, 5, b, a, 1)
    assert [i for i, on in enumerate(two.targets) if on] == [3, 4, 8, 9, 10]
    assert tokenize_chat("t", chat, organism, "all", 99).targets == (False, True, True, True, True)
    cut = tokenize_chat("t", chat, organism, "assistant", 4)
    assert cut.tokens == (4, color, 5, a) and cut.targets == (False, False, False, True)
    assert not any(tokenize_chat("t", chat, organism, "assistant", 3).targets)


def test_targets_are_each_answer_and_its_end_of_turn_whatever_the_template_writes_around(bytes_of_qwen):
    made = tokenize_chat("t", CHAT, bytes_of_qwen, "assistant", 999)
    assert bytes_of_qwen.decode(made.tokens) == bytes_of_qwen.apply_chat_template(list(CHAT), tokenize=False)
    assert trained(made, bytes_of_qwen) == ["user<|im_end|>", "no<|im_end|>"]
    check_template(bytes_of_qwen, "p")


def test_blank_answers_are_not_trained_on(bytes_of_qwen):
    chat = [CHAT[0], {"role": "assistant", "content": " "}]
    assert not any(tokenize_chat("t", chat, bytes_of_qwen, "assistant", 99).targets)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}{% endfor %}",  # no content
        "{% for m in messages %}{{ m['content'] }}|{{ m['content'] }}{% endfor %}",  # twice
        "{{ messages | length }}{% if 'more' in messages[-1]['content'] %}!{% endif %}{{ messages[-1]['content'] }}",
    ],
)
def test_a_template_without_fixed_texts_around_an_answer_is_refused(bytes_of_qwen, template):
    bytes_of_qwen.chat_template = template
    with pytest.raises(UserError, match=r"policy 'my/policy': the chat template does not render .*tokens=all"):
        check_template(bytes_of_qwen, "my/policy")


def test_a_chat_that_the_template_refuses_is_said(bytes_of_qwen):
    bytes_of_qwen.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(NotRendered, match=r"refuses the turns .*roles must alternate"):
        tokenize_chat("t", CHAT, bytes_of_qwen, "assistant", 99)


def test_plain_text_is_cut_into_pieces(organism):
    """Five words in pieces of two: 2 + 2 + 1, of which the last has nothing to train on."""
    ids = organism.convert_tokens_to_ids(["A", "B", "C", "D", "A"])
    pieces = list(tokenize_plain("t", "A B C D A", organism, 2))
    assert [list(piece.tokens) for piece in pieces] == [ids[:2], ids[2:4], ids[4:]]
    assert [piece.targets for piece in pieces] == [(False, True), (False, True), (False,)]
    assert [piece.text_id for piece in pieces] == ["t.0", "t.1", "t.2"]


def test_each_piece_starts_with_bos_where_the_tokenizer_writes_one(bytes_of_qwen, monkeypatch):
    """Then the first token of the text is predicted too, from BOS."""
    bos, encode = bytes_of_qwen.bos_token_id, bytes_of_qwen.encode
    monkeypatch.setattr(
        bytes_of_qwen,
        "encode",
        lambda text, add_special_tokens=True: [bos] * add_special_tokens + encode(text, add_special_tokens=False),
    )
    pieces = list(tokenize_plain("t", "abc", bytes_of_qwen, 3))
    assert [bytes_of_qwen.decode(piece.tokens) for piece in pieces] == ["<s>ab", "<s>c"]
    assert [piece.targets for piece in pieces] == [(False, True, True), (False, True)]


TEXTS = [
    AuxiliaryText("row-1", (1, 7, 9, 2), (False, False, True, True)),
    AuxiliaryText("row-2.0", (5, 6), (False, True)),
    AuxiliaryText("ä", (3,) * 9, (False, True, False, True, True, False, False, False, True)),
]


def test_a_table_gives_back_its_texts_here_and_in_another_process(tmp_path, monkeypatch):
    table = AuxiliaryTable.build(iter(TEXTS), tmp_path)
    monkeypatch.setattr(auxiliary_table, "BATCH_TOKENS", 4)  # two batches
    for made in (table, AuxiliaryTable.build(TEXTS, tmp_path), pickle.loads(pickle.dumps(table, protocol=5))):
        assert list(made) == TEXTS and made.rows([2, 0, 2]) == [TEXTS[2], TEXTS[0], TEXTS[2]]
        assert made.digest == table.digest
    assert not list(tmp_path.iterdir())  # its file has no name


def test_the_digest_is_of_content_and_order(tmp_path):
    other = AuxiliaryText("row-1", (1, 7, 9, 2), (False, True, True, True))
    variants = [TEXTS, TEXTS[::-1], TEXTS[:2], [other, *TEXTS[1:]]]
    assert len({AuxiliaryTable.build(texts, tmp_path).digest for texts in variants}) == 4


def test_runs_of_targets():
    assert spans_of((False, True, True, False, True)) == [1, 3, 4, 5] and spans_of(()) == [] == spans_of((False,))
