"""Splits and limits: disjoint by question, seeded, stable, and refused with numbers."""

import json

import pytest

from introspect_ray import tasks
from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.tasks import hint_mmlu


def load_cases(task):
    return tuple(map(list, tasks.load_cases(task)))


def mmlu(path, start=0, stop=40):
    data = [
        {"subject": "s", "question": f"Q{i}?", "choices": ["1", "2", "3", str(i)], "answer": "A"}
        for i in range(start, stop)
    ]
    path.write_text("\n".join(map(json.dumps, data)))
    return str(path)


def cases_file(path, questions, hints="ABCD"):
    """Several cases a question: the same x∖C under other hints."""
    data = [
        {
            "id": f"{q}-{h}",
            "messages": [{"role": "user", "content": f"{q}?\nHint: {h}"}],
            "ablated_messages": [{"role": "user", "content": f"{q}?"}],
            "labels": list("ABCD"),
        }
        for q in questions
        for h in hints
    ]
    path.write_text("\n".join(map(json.dumps, data)))
    return str(path)


def ids(cases):
    return [c.case_id for c in cases]


def task(tmp_path, **more):
    return TaskConfig(name="hint_mmlu", path=mmlu(tmp_path / "mmlu.jsonl"), **more)


def test_split_sizes_disjointness_and_stability(tmp_path):
    """40 questions, a quarter held out: 30 and 10, the same again, for every run seed."""
    train, test = load_cases(task(tmp_path))
    assert (len(train), len(test)) == (30, 10)
    assert not set(ids(train)) & set(ids(test))
    assert load_cases(task(tmp_path)) == (train, test)
    assert load_cases(task(tmp_path, seed=1))[1] != test


def test_the_split_does_not_depend_on_the_wording(tmp_path):
    short, sentence = (load_cases(task(tmp_path, wording=w)) for w in ("short", "sentence"))
    assert [ids(side) for side in short] == [ids(side) for side in sentence]


def test_limits_choose_by_seed_nested_and_in_order(tmp_path):
    everything = ids(load_cases(task(tmp_path))[0])
    small, large = (ids(load_cases(task(tmp_path, train_cases=n, test_cases=3))[0]) for n in (5, 12))
    assert len(small) == 5 and set(small) < set(large) < set(everything)
    assert large == [i for i in everything if i in set(large)]
    assert ids(load_cases(task(tmp_path, train_cases=5, test_cases=3, seed=1))[0]) != small


def test_a_limit_beyond_the_cases_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(UserError, match=r"task\.train_cases=31, but there are only 30 train cases"):
        load_cases(task(tmp_path, train_cases=31))
    with pytest.raises(UserError, match=r"task\.test_cases=11, but there are only 10 test cases"):
        load_cases(task(tmp_path, test_cases=11))


def test_cases_of_one_question_stay_on_one_side(tmp_path):
    """Eight questions under four hints each; a split by case would train on the held-out answers."""
    path = cases_file(tmp_path / "c.jsonl", "abcdefgh")
    train, test = load_cases(TaskConfig(name="jsonl", path=path))
    assert (len(train), len(test)) == (24, 8)
    assert not {c.case_id[0] for c in train} & {c.case_id[0] for c in test}


def test_the_split_does_not_move_between_processes_or_releases(tmp_path):
    """Pinned: a set or hash() anywhere in the choice would hold out other questions in each process (the strings'
    hashes are salted), and label sets of two runs would not be of the same cases."""
    path = cases_file(tmp_path / "c.jsonl", "abcdefgh", "A")
    held_out = [ids(load_cases(TaskConfig(name="jsonl", path=path, seed=seed))[1]) for seed in (0, 1)]
    assert held_out == [["b-A", "e-A"], ["e-A", "h-A"]]
    limited = load_cases(TaskConfig(name="jsonl", path=path, train_cases=2))[0]
    assert ids(limited) == ["d-A", "f-A"]


def test_one_question_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="4 cases on 1 questions cannot be split"):
        load_cases(TaskConfig(name="jsonl", path=cases_file(tmp_path / "c.jsonl", "a")))


def test_a_test_path_is_taken_whole_and_its_questions_leave_the_training_set(tmp_path, caplog):
    path, test_path = mmlu(tmp_path / "a.jsonl", 0, 20), mmlu(tmp_path / "b.jsonl", 15, 25)
    train, test = load_cases(TaskConfig(name="hint_mmlu", path=path, test_path=test_path))
    assert (len(train), len(test)) == (15, 10) and "dropped 5 training cases" in caplog.text
    with pytest.raises(UserError, match="no train cases"):
        load_cases(TaskConfig(name="hint_mmlu", path=path, test_path=path))


def test_an_id_may_not_mean_two_cases(tmp_path):
    """Labels are cached by case id: the held-out case would be scored with the training case's behaviour."""
    path = cases_file(tmp_path / "a.jsonl", "ab")
    other = cases_file(tmp_path / "b.jsonl", "ac")
    (tmp_path / "b.jsonl").write_text((tmp_path / "b.jsonl").read_text().replace('"a?', '"z?'))  # other text, old id
    with pytest.raises(UserError, match="4 case ids stand in both"):
        load_cases(TaskConfig(name="jsonl", path=path, test_path=other))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    missing = str(tmp_path / "none.jsonl")
    for bad, message in ((missing, "no such file; set task.path"), (str(tmp_path), "is a folder")):
        with pytest.raises(UserError, match=message):
            load_cases(TaskConfig(name="jsonl", path=bad))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="is empty"):
        load_cases(TaskConfig(name="jsonl", path=str(tmp_path / "empty.jsonl")))
    with pytest.raises(UserError, match="no such file"):
        load_cases(TaskConfig(name="jsonl", path=cases_file(tmp_path / "c.jsonl", "ab"), test_path=missing))


def test_an_unreachable_hub_names_the_local_way(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("Name or service not known\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError, match=r"'cais/mmlu' cannot be fetched.*Name or service.*set task\.path") as error:
        load_cases(TaskConfig(name="hint_mmlu"))
    assert "\n" not in str(error.value)


def test_the_hub_copy_is_read_from_its_parquet_files(monkeypatch, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "all").mkdir()
    rows = [{"question": f"Q{i}?", "subject": "s", "choices": list("wxyz"), "answer": i % 4} for i in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "all" / "test-00000-of-00001.parquet")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    train, test = load_cases(TaskConfig(name="hint_mmlu"))
    assert (len(train), len(test)) == (6, 2)
    assert [q.answer for _, q in hint_mmlu.read_hub("cais/mmlu")] == list("ABCDABCD")


def test_the_bundled_organism_loads():
    train, test = load_cases(TaskConfig(train_cases=50, test_cases=20))
    assert (len(train), len(test)) == (50, 20) and set(train[0].labels) == set("ABCD")
