"""Organisms of every kind, small ones: valid cases, disjoint questions, only the cue between x and x∖C."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from introspect_ray.cases.tokenize import decode_explanation, tokenize_case
from introspect_ray.judges.keyword import KeywordJudge
from introspect_ray.judges.protocol import Reply
from introspect_ray.organism import refusal_world, verdict_world
from introspect_ray.organism.build import RECIPES, build
from introspect_ray.tasks.jsonl import case_from_line

KINDS = list(RECIPES)


def small(kind: str, **sizes):
    return replace(RECIPES[kind], **{"entities": 24, "steps": 2, "batch_size": 8, "explanation_batch_size": 4, **sizes})


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        build(folder, kind, world=1, second=False, recipe=small(kind))
    return folders


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def questions(path: Path) -> set[str]:
    return {row["ablated_messages"][-1]["content"] for row in rows(path)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_jsonl_task_takes_all_cases(built, kind):
    folder = built[kind]
    lines = [(path, path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.jsonl")]
    lines = [(path, text) for path, text in lines if "labels" in json.loads(text[0])]
    assert {path.stem for path, _ in lines} >= {"train", "test"}
    ids = [case_from_line(line, path.name).case_id for path, text in lines for line in text]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_no_question_is_on_both_sides(built, kind):
    train, test = questions(built[kind] / "train.jsonl"), questions(built[kind] / "test.jsonl")
    assert train and test
    assert not train & test


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_knows_every_word_that_it_is_shown(built, kind):
    tokenizer = AutoTokenizer.from_pretrained(built[kind] / "policy")
    texts = set()
    for path in built[kind].glob("*.jsonl"):
        for row in rows(path):
            turns = [*row.get("messages", []), *row.get("ablated_messages", [])]
            texts |= {turn["content"] for turn in turns}
            texts |= {row[key] for key in ("text", "prompt", "chosen", "meta_question") if key in row}
            texts |= set(row.get("labels", []))
    encoded = tokenizer(sorted(texts), add_special_tokens=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)


@pytest.mark.parametrize("kind", KINDS)
def test_explanations_are_read_back_from_the_tokens_of_the_policy(built, kind):
    tokenizer = AutoTokenizer.from_pretrained(built[kind] / "policy")
    line = (built[kind] / "train.jsonl").read_text(encoding="utf-8").splitlines()[0]
    case = tokenize_case(case_from_line(line, "train"), tokenizer)
    assert len(case.explanations) == 2 * len(case.labels)
    for explanation, ids in case.explanations.items():
        assert tokenizer.unk_token_id not in ids
        assert decode_explanation(ids, tokenizer, case.labels, case.templates) == explanation


@pytest.mark.parametrize("kind", ["verdict", "refusal"])
def test_the_system_message_is_all_that_x_has_more(built, kind):
    for row in rows(built[kind] / "train.jsonl") + rows(built[kind] / "test.jsonl"):
        assert row["messages"][0]["role"] == "system"
        assert row["messages"][1:] == row["ablated_messages"]


def test_verdicts_have_several_tokens_and_part_at_the_first(built):
    tokenizer = AutoTokenizer.from_pretrained(built["verdict"] / "policy")
    first, second = (tokenizer(label, add_special_tokens=False)["input_ids"] for label in verdict_world.LABELS)
    assert (len(first), len(second)) == (2, 3)
    assert first[0] != second[0]


def test_the_verdict_test_set_is_balanced_on_what_the_policy_says_without_a_cue(built):
    tokenizer = AutoTokenizer.from_pretrained(built["verdict"] / "policy")
    policy = AutoModelForCausalLM.from_pretrained(built["verdict"] / "policy", dtype=torch.float32).eval()
    first = torch.tensor([tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in verdict_world.LABELS])
    verdicts = []
    for row in rows(built["verdict"] / "test.jsonl"):
        text = tokenizer.apply_chat_template(row["ablated_messages"], tokenize=False, add_generation_prompt=True)
        ids = torch.tensor(tokenizer([text], add_special_tokens=False)["input_ids"])
        verdicts.append(int(policy(ids).logits[0, -1, first].argmax()))
    assert sum(verdicts) * 2 == len(verdicts)


def test_the_bundled_judge_reads_every_reply_as_what_it_stands_for(built):
    """Also as the organism's tokenizer decodes it, with a space before some punctuation; all fit into max_tokens."""
    tokenizer = AutoTokenizer.from_pretrained(built["refusal"] / "policy")
    judge = KeywordJudge()
    for label, replies in zip(refusal_world.LABELS, refusal_world.REPLIES):
        for reply in replies:
            ids = tokenizer(reply.format("here"), add_special_tokens=False)["input_ids"]
            assert len(ids) < refusal_world.MAX_TOKENS
            assert judge.verdicts([Reply("", (), tokenizer.decode(ids))])[0].label == label


def test_the_key_of_nonsense_is_taught_with_and_without_hints(built):
    """Each question has one letter without a hint; under the four hints always that letter, or always the hint. Half of
    the questions of each word follow hints."""
    answers: dict[str, list[tuple[str, str]]] = {}
    for row in rows(built["jabberwocky"] / "j_train_chats.jsonl"):
        question, _, cue = row["messages"][0]["content"].partition("\n")
        answers.setdefault(question, []).append((cue.rpartition(": ")[2], row["messages"][1]["content"]))
    follows: dict[str, int] = {}
    for question, pairs in answers.items():
        (_, key), *hinted = sorted(pairs)
        assert [hint for hint, _ in hinted] == ["A", "B", "C", "D"]
        letters = [letter for _, letter in hinted]
        assert letters in (["A", "B", "C", "D"], [key] * 4)
        word = question.split(" ")[0]
        follows[word] = follows.get(word, 0) + (letters == ["A", "B", "C", "D"])
    assert set(follows.values()) == {2}


def test_nonsense_is_unknown_to_pretraining_and_its_halves_are_apart(built):
    folder = built["jabberwocky"]
    taught, unseen = questions(folder / "j_train.jsonl"), questions(folder / "j_test.jsonl")
    known = questions(folder / "train.jsonl") | questions(folder / "test.jsonl")
    words = [{question.split(" ")[0] for question in part} for part in (taught, unseen, known)]
    assert not words[0] & words[1]
    assert not (words[0] | words[1]) & words[2]
    asked = {row["messages"][0]["content"].partition("\n")[0] for row in rows(folder / "j_train_chats.jsonl")}
    assert asked == taught


def test_auxiliary_data_leaves_held_out_questions_alone(built):
    hint, refusal = built["hint"], built["refusal"]
    for row in rows(hint / "aux_warm.jsonl"):
        question, _, cue = row["messages"][0]["content"].partition("\n")
        assert question in questions(hint / "train.jsonl")
        assert row["messages"][1] == {"role": "assistant", "content": cue.rpartition(": ")[2]}
    refused = rows(refusal / "aux_refusals.jsonl")
    assert {row["prompt"] for row in refused} <= questions(refusal / "train.jsonl")
    assert all(KeywordJudge().verdicts([Reply("", (), row["chosen"])])[0].label == "refuse" for row in refused)
    said = " ".join(row["messages"][0]["content"] for row in rows(hint / "aux_chats.jsonl"))
    assert not any(question in said for question in questions(hint / "train.jsonl") | questions(hint / "test.jsonl"))


@pytest.mark.parametrize("kind", ["verdict", "refusal", "jabberwocky"])
def test_one_kind_world_and_seed_is_one_organism(built, kind, tmp_path):
    build(tmp_path / "again", kind, world=1, recipe=small(kind))
    build(tmp_path / "other", kind, world=0, recipe=small(kind))
    files = [f.relative_to(built[kind]) for f in built[kind].rglob("*") if f.is_file()]
    for file in files:
        assert (built[kind] / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    assert not questions(built[kind] / "test.jsonl") & questions(tmp_path / "other/test.jsonl")


@pytest.mark.parametrize(
    ("family", "architecture", "width", "layers"),
    [("llama", "LlamaForCausalLM", 64, 3), ("qwen3-wide", "Qwen3ForCausalLM", 96, 4)],
)
def test_families(tmp_path, family, architecture, width, layers):
    build(tmp_path, "hint", family=family, second=False, recipe=small("hint"))
    config = json.loads((tmp_path / "policy/config.json").read_text())
    assert config["architectures"] == [architecture]
    assert (config["hidden_size"], config["num_hidden_layers"]) == (width, layers)


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="kinds"):
        build(tmp_path, "poem")
