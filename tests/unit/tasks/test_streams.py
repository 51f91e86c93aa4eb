"""Streams of cases: the sides, choices and refusals are those of plain lists, in a few bytes per case."""

import gzip
import json
import random

import pytest

from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.organism import FOLDER
from introspect_ray.policy import load_tokenizer
from introspect_ray.rng import bits
from introspect_ray.tasks import load_cases, streams
from introspect_ray.tasks.jsonl import case_from_line


def case(case_id, text):
    turns = [[{"role": "user", "content": content}] for content in (f"{text}\nHint: A", text)]
    return {"id": case_id, "messages": turns[0], "ablated_messages": turns[1], "labels": ["A", "B"]}


def rows(count, questions, seed):
    """`count` cases on at most `questions` questions, in a random order."""
    rng = random.Random(seed)
    made = [case(f"c{i:03d}", f"Question {rng.randrange(questions)}?") for i in range(count)]
    rng.shuffle(made)
    return made


def named(names):
    """A case per name, each on a question of its own; the id is the name."""
    return [case(name, f"{name}?") for name in names]


def write(path, data):
    text = "".join(json.dumps(row) + "\n" for row in data)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def ids(side):
    return [case.case_id for case in side]


def question(row):
    return tuple((turn["role"], turn["content"]) for turn in row["ablated_messages"])


def limited(side, limit, seed, name):
    """The definition of a limit, on lists: the cases with the smallest hashes of their ids."""
    if limit is None:
        return side
    ranked = sorted(side, key=lambda row: (bits(seed, name, row["id"]), row["id"]))
    chosen = {row["id"] for row in ranked[:limit]}
    return [row for row in side if row["id"] in chosen]


def by_lists(data, task):
    """The definition of the split, on lists: of all questions, sorted by their hash, the first are held out."""
    questions = sorted({question(row) for row in data}, key=lambda q: (bits(task.seed, "split", q), q))
    held_out = set(questions[: max(1, round(task.test_fraction * len(questions)))])
    sides = [[row for row in data if (question(row) in held_out) == test] for test in (False, True)]
    limits = ((task.train_cases, "train"), (task.test_cases, "test"))
    return [limited(side, limit, task.seed, name) for side, (limit, name) in zip(sides, limits)]


@pytest.mark.parametrize("name", ["cases.jsonl", "cases.jsonl.gz"])
@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("limits", [{}, {"train_cases": 20, "test_cases": 9}])
def test_the_sides_are_those_of_the_definition(tmp_path, name, seed, limits):
    data = rows(120, 40, seed)
    task = TaskConfig(name="jsonl", path=write(tmp_path / name, data), seed=seed, test_fraction=0.3, **limits)
    sides = load_cases(task)
    for side, expected in zip(sides, by_lists(data, task)):
        assert len(side) == len(expected) > 0
        assert ids(side) == [row["id"] for row in expected]
        assert [list(case.messages) for case in side] == [row["messages"] for row in expected]  # read once more


def test_the_split_does_not_move_between_processes_or_releases(tmp_path):
    """Pinned: a set or hash() anywhere in the choice would hold out other questions in each process (the strings'
    hashes are salted), and label sets of two runs would not be of the same cases."""
    path = write(tmp_path / "c.jsonl", [case(f"{q}-A", f"{q}?") for q in "abcdefgh"])
    held_out = [ids(load_cases(TaskConfig(name="jsonl", path=path, seed=seed))[1]) for seed in (0, 1)]
    assert held_out == [["b-A", "e-A"], ["e-A", "h-A"]]
    assert ids(load_cases(TaskConfig(name="jsonl", path=path, train_cases=2))[0]) == ["d-A", "f-A"]


def test_a_test_file_is_taken_whole_and_its_questions_leave_the_training_file(tmp_path, caplog):
    test = rows(20, 15, 1)
    train = [{**row, "id": f"t{row['id']}"} for row in rows(80, 40, 2)]
    paths = {"path": write(tmp_path / "a.jsonl", train), "test_path": write(tmp_path / "b.jsonl", test)}
    sides = load_cases(TaskConfig(name="jsonl", **paths, train_cases=30))
    held_out = {question(row) for row in test}
    left = [row for row in train if question(row) not in held_out]
    assert ids(sides[0]) == [row["id"] for row in limited(left, 30, 0, "train")]
    assert ids(sides[1]) == [row["id"] for row in test]
    assert f"dropped {80 - len(left)} training cases" in caplog.text
    same = write(tmp_path / "c.jsonl", [{**row, "id": f"t{row['id']}"} for row in test])
    with pytest.raises(UserError, match="no train cases"):
        load_cases(TaskConfig(name="jsonl", path=same, test_path=paths["test_path"]))


def test_one_question_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="4 cases on 1 questions cannot be split"):
        load_cases(TaskConfig(name="jsonl", path=write(tmp_path / "c.jsonl", rows(4, 1, 0))))


def test_a_limit_beyond_the_cases_is_refused_with_both_numbers(tmp_path):
    path = write(tmp_path / "c.jsonl", named("abcdefgh"))
    with pytest.raises(UserError, match=r"task\.train_cases=7, but there are only 6 train cases"):
        load_cases(TaskConfig(name="jsonl", path=path, train_cases=7))
    with pytest.raises(UserError, match=r"task\.test_cases=3, but there are only 2 test cases"):
        load_cases(TaskConfig(name="jsonl", path=path, test_cases=3))


@pytest.mark.parametrize("of_one_hash", [False, True])
def test_an_id_may_not_occur_twice(tmp_path, monkeypatch, of_one_hash):
    """The message names the first two lines with one id; ids that only share their hash are no repetition."""
    if of_one_hash:
        monkeypatch.setattr(streams, "_id_key", lambda case_id: 5)
    good = load_cases(TaskConfig(name="jsonl", path=write(tmp_path / "a.jsonl", named("abcd"))))
    assert sum(map(len, good)) == 4
    with pytest.raises(UserError, match=r"b.jsonl line 5: id 'b' is already that of .*b.jsonl line 2; ids must be"):
        load_cases(TaskConfig(name="jsonl", path=write(tmp_path / "b.jsonl", named("abcdba"))))


def test_an_id_may_not_mean_two_cases(tmp_path):
    """Labels are cached by case id: the held-out case would be scored with the training case's behaviour."""
    path, other = write(tmp_path / "a.jsonl", named("ab")), write(tmp_path / "b.jsonl", named("cd"))
    (tmp_path / "b.jsonl").write_text((tmp_path / "b.jsonl").read_text().replace('"id": "c"', '"id": "a"'))
    with pytest.raises(UserError, match=r"1 case ids stand in both .*'a'"):
        load_cases(TaskConfig(name="jsonl", path=path, test_path=other))


@pytest.mark.parametrize("change", ["shorter", "other ids"])
def test_a_file_that_changes_between_its_passes_is_refused(tmp_path, change):
    data = rows(30, 30, 0)
    path = write(tmp_path / "c.jsonl", data)
    train, _ = load_cases(TaskConfig(name="jsonl", path=path))
    write(tmp_path / "c.jsonl", data[:10] if change == "shorter" else [{**row, "id": row["id"] + "x"} for row in data])
    with pytest.raises(UserError, match="changed while it was read"):
        list(train)


def test_too_long_questions_are_dropped_before_the_split(tmp_path, caplog):
    """Texts of 1 to 40 words: those at most as long as the 20th stay, and are split as if the others were not there."""
    tokenizer = load_tokenizer(str(FOLDER / "policy"))
    data = [case(f"c{words:02d}", " ".join(["A"] * words)) for words in range(1, 41)]
    path = write(tmp_path / "all.jsonl", data)
    limit = len(tokenize_case(case_from_line(json.dumps(data[19]), "x"), tokenizer).question)
    kept = load_cases(TaskConfig(name="jsonl", path=path, max_tokens=limit, train_cases=9), tokenizer)
    short = load_cases(TaskConfig(name="jsonl", path=write(tmp_path / "short.jsonl", data[:20]), train_cases=9))
    assert list(map(ids, kept)) == list(map(ids, short)) and list(map(len, kept)) == [9, 5]
    assert f"task.max_tokens={limit}: dropped 20 of 40 cases" in caplog.text
    with pytest.raises(UserError, match=r"max_tokens=3 leaves none of the 40 cases .* has \d+ tokens: raise it"):
        load_cases(TaskConfig(name="jsonl", path=path, max_tokens=3), tokenizer)
