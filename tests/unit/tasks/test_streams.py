"""Streams decide as lists would: the same sides, choices and refusals, in a few bytes a case."""

import gzip
import json
import random
from array import array

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.rng import bits
from introspect_ray.tasks import hint_mmlu, jsonl, load_cases
from introspect_ray.tasks.jsonl import text_lines
from introspect_ray.tasks.seen import Seen, _insert


def rows(count, questions, seed):
    """`count` cases on about so many questions, in no order."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        text = f"Question {rng.randrange(questions)}?"
        turns = [[{"role": "user", "content": content}] for content in (f"{text}\nHint: A", text)]
        made.append({"id": f"c{i:03d}", "messages": turns[0], "ablated_messages": turns[1], "labels": ["A", "B"]})
    rng.shuffle(made)
    return made


def write(path, data):
    text = "".join(json.dumps(row) + "\n" for row in data)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def question(row):
    return tuple((turn["role"], turn["content"]) for turn in row["ablated_messages"])


def limited(side, limit, seed, name):
    """The old way: all cases sorted by the hash of their id."""
    if limit is None:
        return side
    ranked = sorted(side, key=lambda row: (bits(seed, name, row["id"]), row["id"]))
    chosen = {row["id"] for row in ranked[:limit]}
    return [row for row in side if row["id"] in chosen]


def by_lists(data, task):
    """The split as it is defined, on lists: whole questions, sorted by their hash, the first are held out."""
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
        assert [case.case_id for case in side] == [row["id"] for row in expected]
        assert [list(case.messages) for case in side] == [row["messages"] for row in expected]  # read once more


def test_a_test_file_takes_its_questions_from_the_training_file(tmp_path):
    test = rows(20, 15, 1)
    train = [{**row, "id": f"t{row['id']}"} for row in rows(80, 40, 2)]
    paths = {"path": write(tmp_path / "a.jsonl", train), "test_path": write(tmp_path / "b.jsonl", test)}
    sides = load_cases(TaskConfig(name="jsonl", **paths, train_cases=30))
    asked = {question(row) for row in test}
    kept = limited([row for row in train if question(row) not in asked], 30, 0, "train")
    assert [case.case_id for case in sides[0]] == [row["id"] for row in kept]
    assert [case.case_id for case in sides[1]] == [row["id"] for row in test]


def test_a_limited_side_yields_no_other_case(tmp_path):
    """What is not chosen is not even made a case, so it cannot be tokenized."""
    path = write(tmp_path / "c.jsonl", rows(50, 50, 0))
    numbers = [number for number, _ in jsonl.read_cases(path, [3, 4, 49])]
    assert numbers == [3, 4, 49]
    assert len(list(load_cases(TaskConfig(name="jsonl", path=path, train_cases=5))[0])) == 5


@pytest.mark.parametrize("change", ["shorter", "other ids"])
def test_a_file_that_changes_between_its_passes_is_refused(tmp_path, change):
    data = rows(30, 30, 0)
    path = write(tmp_path / "c.jsonl", data)
    train, _ = load_cases(TaskConfig(name="jsonl", path=path))
    write(tmp_path / "c.jsonl", data[:10] if change == "shorter" else [{**row, "id": row["id"] + "x"} for row in data])
    with pytest.raises(UserError, match="changed while it was read"):
        list(train)


def test_parquet_is_read_in_batches_with_the_rows_of_jsonl(tmp_path, monkeypatch, caplog):
    """Eleven rows of two row groups in batches of four, two of them repetitions."""
    monkeypatch.setattr(hint_mmlu, "BATCH_ROWS", 4)
    data = [{"question": f"Q{i % 9}?", "subject": "s", "choices": list("wxyz"), "answer": i % 9 % 4} for i in range(11)]
    pq.write_table(pa.Table.from_pylist(data), tmp_path / "m.parquet", row_group_size=6)
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, data)))
    from_parquet, from_json = (list(hint_mmlu.read_rows(tmp_path / name)) for name in ("m.parquet", "m.jsonl"))
    assert from_parquet == from_json and [number for number, _ in from_parquet] == list(range(1, 10))
    assert caplog.text.count("dropped 2 repeated questions of 11") == 2
    assert list(hint_mmlu.read_rows(tmp_path / "m.parquet", [2, 9])) == [from_json[1], from_json[8]]
    assert caplog.text.count("dropped") == 2  # said by the first pass alone


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\n\r\nb", ["a", "", "b"]),
        (b"a\rb\r\n", ["a", "b"]),
        (b"\n\na\n\n\n", ["", "", "a"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        ("ä\u2028b\nc".encode(), ["ä\u2028b", "c"]),
        (b"\n\n", [""]),
    ],
)
def test_lines_are_those_of_the_whole_text(tmp_path, content, lines):
    """As of text mode (universal line ends, a byte order mark), less the empty lines at the end."""
    for name, data in (("x", content), ("x.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        assert list(text_lines(tmp_path / name)) == lines
    whole = (tmp_path / "x").read_text(encoding="utf-8-sig")
    assert whole.rstrip("\n").split("\n") == lines


def test_the_byte_that_is_no_text_is_counted_from_the_start(tmp_path):
    (tmp_path / "x").write_bytes(b"abc\nd\xff\n")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 5\)"):
        list(text_lines(tmp_path / "x"))


def test_seen_is_a_set_of_any_size():
    """10,000 names need four doublings of its 1,024 slots."""
    seen = Seen()
    assert all(seen.add(f"n{i}") for i in range(10_000))
    assert not any(seen.add(f"n{i}") for i in range(10_000)) and seen.add("n10000")


def test_keys_that_want_one_slot_get_the_next_ones():
    slots = array("Q", [0, 0, 0, 0])
    assert [_insert(slots, key) for key in (3, 7, 11, 7, 3)] == [True, True, True, False, False]
    assert list(slots) == [7, 11, 0, 3]


def test_two_ids_of_one_hash_are_no_repetition(tmp_path, monkeypatch):
    monkeypatch.setattr(Seen, "add", lambda self, name: False)
    path = write(tmp_path / "c.jsonl", rows(3, 3, 0))
    assert len(list(jsonl.read_cases(path))) == 3
    with pytest.raises(UserError, match=r"line 4: id 'c001' is already on line"):
        list(jsonl.read_cases(write(tmp_path / "d.jsonl", [*rows(3, 3, 0), rows(3, 3, 0)[0] | {"id": "c001"}])))
