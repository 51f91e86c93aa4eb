"""Auxiliary data of a run: rows of each published shape, what is left out, what is refused, and each rank's share."""

from __future__ import annotations

import gzip
import json
import logging
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from introspect_ray.actors.trainer import auxiliary_share
from introspect_ray.config import load_config
from introspect_ray.config.sections import AuxiliaryConfig
from introspect_ray.errors import UserError
from introspect_ray.organism import FOLDER
from introspect_ray.policy import load_tokenizer
from introspect_ray.runs.auxiliary import NO_TARGET, read_auxiliary
from introspect_ray.runs.identity import run_identity
from introspect_ray.runs.preflight import prepare

POLICY = str(FOLDER / "policy")
TURNS = [{"role": "user", "content": "color"}, {"role": "assistant", "content": "A"}]
ROWS = {
    "messages": {"messages": TURNS, "source": "mine"},
    "conversation": {"conversation": [{**turn, "language": "English"} for turn in TURNS], "model": "gpt-4"},
    "conversations": {"id": "x", "conversations": [{"from": "human", "value": "color"}, {"from": "gpt", "value": "A"}]},
    "chosen": {"prompt": "color", "chosen": "A", "rejected": "B"},
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(POLICY)


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path, tokenizer, **more):
    return read_auxiliary(AuxiliaryConfig(path=str(path), **more), tokenizer, POLICY)


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_every_shape_of_chat_gives_the_same_tokens(tmp_path, tokenizer, shape, name):
    """By the organism's template: <|user|> color <|assistant|> A <eos>; the refusal of harmful-dataset is `chosen`."""
    (text,) = read(write(tmp_path, [ROWS[shape]], name), tokenizer)
    words = tokenizer.convert_ids_to_tokens(list(text.tokens))
    assert words == ["<|user|>", "color", "<|assistant|>", "A", "<eos>"]
    assert text.targets == (False, False, False, True, True)


def test_plain_text_from_rows_and_from_a_text_file(tmp_path, tokenizer):
    """Three tokens a piece; a newline is a token of the organism."""
    from_rows = read(write(tmp_path, [{"text": "A B C D"}, {"text": "A B"}]), tokenizer, max_tokens=3)
    assert [tokenizer.convert_ids_to_tokens(list(t.tokens)) for t in from_rows] == [["A", "B", "C"], ["A", "B"]]
    (tmp_path / "all.txt").write_text("A B\nC D A\n")
    from_file = read(tmp_path / "all.txt", tokenizer, max_tokens=3)
    assert [tokenizer.convert_ids_to_tokens(list(t.tokens)) for t in from_file] == [["A", "B", "\n"], ["C", "D", "A"]]


def test_texts_without_a_target_are_counted_in_one_line(tmp_path, tokenizer, caplog):
    rows = [{"messages": TURNS}, {"messages": TURNS[:1]}, {"messages": []}, {"text": ""}]
    with caplog.at_level(logging.WARNING):
        table = read(write(tmp_path, rows), tokenizer)
    assert [text.text_id for text in table] == ["row-1"]
    assert [r.message for r in caplog.records] == [f"left out 3 auxiliary texts: {NO_TARGET}"]
    with pytest.raises(UserError, match=r"no auxiliary text is left \(3 texts: they hold no token"):
        read(write(tmp_path, rows[1:]), tokenizer)
    assert len(caplog.records) == 1  # where none is left the error says it all


@pytest.mark.parametrize(
    "row,message",
    [
        (
            {"title": "x"},
            "line 2: none of the columns messages, conversation, conversations, chosen, text (found title)",
        ),
        ({"messages": "x"}, "line 2, messages: expected a list of turns, found str"),
        ({"messages": [{"role": "user"}]}, "line 2, messages: turn 1 is no object with the keys 'role' and 'content'"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "turn 1 has the role 'robot'; roles are system, user"),
        ({"messages": [{"role": "user", "content": None}]}, "turn 1 has content that is no text"),
        ({"chosen": "x"}, "line 2: prompt and chosen must be text"),
        ({"text": 3}, "line 2: text must be text"),
        ("{", "line 2: not valid JSON"),
        ({"text": "A \ud83d"}, "line 2: \\ud83d is half of a character"),
        ("3", "line 2: expected an object, found int"),
    ],
)
def test_a_bad_row_is_named(tmp_path, tokenizer, row, message):
    path = write(tmp_path, [ROWS["messages"], row])
    with pytest.raises(UserError) as error:
        read(path, tokenizer)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_sequences_longer_than_the_context_are_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"auxiliary\.max_tokens=513, .* has a context of 512 tokens"):
        read(write(tmp_path, [ROWS["messages"]]), tokenizer, max_tokens=513)


def test_two_sources_are_refused():
    with pytest.raises(UserError, match="name two sources of one set"):
        load_config(None, {"auxiliary.path": "a.txt", "auxiliary.hub_id": "b/c"}, {})


def test_preparation_reads_it_for_training_alone_and_a_checkpoint_belongs_to_its_content(tmp_path):
    def prepared(text, **more):
        (tmp_path / "a.txt").write_text(text)
        given = {"auxiliary.path": str(tmp_path / "a.txt"), "output_dir": str(tmp_path / "out")}
        cfg = load_config(None, {**given, "task.train_cases": 4, "task.test_cases": 2}, {})
        return cfg, prepare(cfg, **more)

    assert prepared("A B", training=False)[1].auxiliary is None
    identities = [run_identity(*prepared(text))["content of auxiliary texts"] for text in ("A B", "A C", "A B")]
    assert identities[0] == identities[2] != identities[1]


def test_ranks_share_a_steps_texts_without_repeats_in_an_epoch(tmp_path, tokenizer):
    """Twelve texts, four a step: three steps are an epoch. Three ranks get 2 + 1 + 1 of them."""
    table = read(write(tmp_path, [{"text": f"{a} {b}"} for a in "ABC" for b in "ABCD"]), tokenizer)
    cfg = load_config(None, {"auxiliary.path": "x", "auxiliary.batch_size": 4, "seed": 3}, {})
    shares = [auxiliary_share(cfg, table, rank, 3) for rank in range(3)]
    steps = [[share(step) for share in shares] for step in range(6)]
    assert {tuple(map(len, step)) for step in steps} == {(2, 1, 1)}
    for epoch in (steps[:3], steps[3:]):
        assert Counter(text.text_id for step in epoch for share in step for text in share) == Counter(
            text.text_id for text in table
        )
    assert steps[:3] != steps[3:] and shares[0](1) == steps[1][0]
