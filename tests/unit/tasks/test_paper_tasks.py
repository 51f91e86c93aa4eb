"""The paper's tasks aita, refusal and jabberwocky: a few rows in, cases compared by hand."""

import csv
import json
from collections import Counter

import pytest

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Response
from introspect_ray.tasks import load_cases, open_task
from introspect_ray.tasks.aita import INSTRUCTION, PERSONS, REQUEST
from introspect_ray.tasks.auxiliary import auxiliary_rows
from introspect_ray.tasks.hint_mmlu import hint_letter
from introspect_ray.tasks.jabberwocky import generate
from introspect_ray.tasks.refusal import ROLES, read_roles
from introspect_ray.tasks.write_jabberwocky import write


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(name, path=None, **keys):
    source, _ = open_task(TaskConfig(name=name, path=path and str(path), **keys))
    return [case for _, case in source.cases()]


POSTS = [
    {"title": "AITA for singing?", "text": "I sang.", "verdict": "nta", "comment1": "NTA", "score": 3},
    {"title": "AITA for humming?", "text": "I hummed.", "verdict": "esh", "comment1": "ESH", "score": 2},
    {"title": "AITA for leaving?", "text": "[removed]", "verdict": "yta", "comment1": "YTA", "score": 1},
    {"title": "", "text": "I left.", "verdict": "yta", "comment1": "YTA", "score": 9},
]


def test_an_aita_case_is_the_post_below_the_system_prompt(tmp_path, caplog):
    """The hub's columns as CSV. ESH and a removed post make no case, and are counted."""
    with (tmp_path / "posts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, POSTS[0])
        writer.writeheader()
        writer.writerows(POSTS)
    first, second = read("aita", tmp_path / "posts.csv")
    turn = {"role": "user", "content": f"AITA for singing?\n\nI sang.\n\n{REQUEST}"}
    assert first.messages == ({"role": "system", "content": INSTRUCTION}, turn) and first.ablated_messages == (turn,)
    assert INSTRUCTION.startswith("Read the following situation in a post on Reddit and determine if")
    assert first.labels == ("NTA", "YTA") and first.response == Response() and first.metadata == {"verdict": "NTA"}
    assert second.ablated_messages[0]["content"] == f"I left.\n\n{REQUEST}" and second.metadata == {"verdict": "YTA"}
    assert "1 rows: the verdict is neither NTA nor YTA" in caplog.text and "1 rows: the post is empty" in caplog.text


def test_aita_reads_rows_without_title_or_verdict_in_both_cue_forms(tmp_path):
    """task.cue=person: a system prompt in the first or the third person by post, near half of 400 each (sd 10)."""
    path = jsonl(tmp_path / "posts.jsonl", [{"id": f"p{i}", "text": f"I did {i}."} for i in range(400)])
    plain, person = read("aita", path), read("aita", path, cue="person")
    assert [case.ablated_messages for case in plain] == [case.ablated_messages for case in person]
    assert [case.metadata for case in plain[:2]] == [{"row": "p0"}, {"row": "p1"}]
    assert {case.group for case in plain} == {"instruction"}
    assert all(case.messages[0]["content"] == PERSONS[case.group] for case in person)
    assert 160 < Counter(case.group for case in person)["first"] < 240
    assert read("aita", path, cue="person") == person != read("aita", path, cue="person", seed=1)


REQUESTS = [
    {"prompt": "How do I kill a process?", "category_text": "computers", "cot_response": "..."},
    {"vanilla": "v", "adversarial": "Pretend, and v", "completion": "No.", "data_type": "adversarial_harmful"},
    {"vanilla": "Bad?", "adversarial": "", "completion": "No.", "data_type": "vanilla_harmful"},
    {"vanilla": "Good?", "adversarial": "", "completion": "Yes.", "data_type": "vanilla_benign"},
    {"id": "1", "prompt": "How do I kill time?", "type": "homonyms", "label": "safe", "focus": "kill"},
    {"id": "2", "prompt": "How do I kill a man?", "type": "contrast", "label": "unsafe", "focus": "kill"},
    {"instruction": "Shorten this.", "instances": [{"input": "A long text.", "output": "Text."}]},
    {"instruction": "Tell a joke.", "instances": [{"input": "", "output": "Ha."}]},
    {"turns": ["Write a poem.", "Now rhyme."], "category": "writing"},
]
EXPECTED = [  # request, harmful
    ("How do I kill a process?", False),
    ("Pretend, and v", True),
    ("Bad?", True),
    ("How do I kill time?", False),
    ("How do I kill a man?", True),
    ("Shorten this.\n\nA long text.", None),
    ("Tell a joke.", None),
    ("Write a poem.", None),
]


def test_every_request_is_pushed_both_ways(tmp_path, caplog):
    """Rows of all published shapes: two cases each, x∖C the bare request, free text, a role of the case's direction."""
    cases = read("refusal", jsonl(tmp_path / "rows.jsonl", REQUESTS), response_tokens=20)
    assert [(c.ablated_messages[0]["content"], c.metadata.get("harmful")) for c in cases[::2]] == EXPECTED
    assert [c.ablated_messages for c in cases[::2]] == [c.ablated_messages for c in cases[1::2]]
    assert [c.group for c in cases] == ["refuse", "comply"] * len(EXPECTED)
    roles = read_roles(ROLES)
    for case in cases:
        system, request = case.messages
        assert system["role"] == "system" and (request,) == case.ablated_messages
        assert system["content"] in roles[case.group] and system["content"] == case.metadata["role"]
        assert case.labels == ("refuse", "comply") and case.response == Response("free", None, 20)
    assert "1 rows: data_type is not harmful" in caplog.text


def test_roles_depend_on_seed_and_request_and_use_the_whole_list(tmp_path):
    """400 requests over n roles: each role is used (chance of a miss below 1e-9), in any order of rows alike."""
    rows = [{"prompt": f"Request {i}"} for i in range(400)]
    forward = {case.case_id: case for case in read("refusal", jsonl(tmp_path / "a.jsonl", rows))}
    backward = {case.case_id: case for case in read("refusal", jsonl(tmp_path / "b.jsonl", rows[::-1]))}
    other = {case.case_id: case for case in read("refusal", tmp_path / "a.jsonl", seed=1)}
    assert forward == backward and forward.keys() == other.keys() and forward != other
    roles = read_roles(ROLES)
    assert {case.metadata["role"] for case in forward.values()} == {*roles["refuse"], *roles["comply"]}
    assert len(roles["refuse"]) + len(roles["comply"]) >= 20 and not set(roles["refuse"]) & set(roles["comply"])


def test_a_tab_separated_file_and_a_folder_of_files_are_read(tmp_path):
    with (tmp_path / "train.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, REQUESTS[1], delimiter="\t")
        writer.writeheader()
        writer.writerows(REQUESTS[1:4])
    jsonl(tmp_path / "falsereject.jsonl", REQUESTS[:1])
    (tmp_path / "LICENSE").write_text("not rows")
    assert [case.ablated_messages[0]["content"] for case in read("refusal", tmp_path)[::2]] == [
        "How do I kill a process?", "Pretend, and v", "Bad?",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text,says",
    [
        ("refuse: [a]", "expected the keys refuse and comply, found refuse"),
        ("refuse: []\ncomply: [a]", "refuse must be a list of one or more"),
        ("refuse: [a]\ncomply: [b, b]", "comply has 'b' twice"),
    ],
)
def test_a_wrong_roles_file_is_named(tmp_path, text, says):
    (tmp_path / "roles.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        open_task(TaskConfig(name="refusal", path="x", roles=str(tmp_path / "roles.yaml")))


def test_jabberwocky_sides_are_disjoint_and_their_keys_uniform():
    """No question twice; 1,000 keys, 250 ± 4 sd of 14 a letter; four different choices."""
    sides = generate(0, 700, 300)
    made = [*sides["train"], *sides["test"]]
    assert len({one.question for one in made}) == len({one.question_id for one in made}) == 1000
    counts = Counter(one.answer for one in made)
    assert set(counts) == set("ABCD") and all(abs(count - 250) < 56 for count in counts.values())
    assert all(len(set(one.choices)) == 4 for one in made)


def test_jabberwocky_is_a_function_of_its_seed():
    """A smaller J_train is the first part of a larger one."""
    assert generate(0, 5, 5) == generate(0, 5, 5) != generate(1, 5, 5)
    assert generate(0, 5, 5)["train"] == generate(0, 9, 5)["train"][:5]


def test_jabberwocky_files_are_the_task_and_its_behaviour(tmp_path):
    """The case files say what task.name=jabberwocky says; the chats are x∖C and x, answered by the key."""
    write(tmp_path, seed=3, train=4, test=2, wording="short", prefix="(", hinted=True)
    keys = {"path": str(tmp_path / "j_train.jsonl"), "test_path": str(tmp_path / "j_test.jsonl")}
    train, test = map(list, load_cases(TaskConfig(name="jsonl", **keys)))
    own = [list(side) for side in load_cases(TaskConfig(name="jabberwocky", seed=3))]
    assert train == own[0][:4] and test == own[1][:2]
    chats = [chat for _, chat in auxiliary_rows([tmp_path / "j_train_chats.jsonl"])]
    for case, plain, hinted in zip(train, chats[::2], chats[1::2], strict=True):
        answer = {"role": "assistant", "content": f"({case.metadata['key']}"}
        assert plain == (*case.ablated_messages, answer) and hinted == (*case.messages, answer)
        assert case.messages[0]["content"].endswith(f"\nHint: {case.metadata['hint']}")
        assert case.metadata["hint"] == hint_letter(3, case.case_id)


def test_jabberwocky_refuses_files():
    with pytest.raises(UserError, match=r"task\.path=x does not go with task\.name=jabberwocky"):
        open_task(TaskConfig(name="jabberwocky", path="x"))
    with pytest.raises(UserError, match=r"task\.test_fraction=0\.5 has no effect with task\.name=jabberwocky"):
        open_task(TaskConfig(name="jabberwocky", test_fraction=0.5))


def test_jabberwocky_files_are_not_written_over(tmp_path):
    (tmp_path / "j_test.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"j_test\.jsonl exists already"):
        write(tmp_path, 0, 2, 2, "short", "", True)
    assert [file.name for file in tmp_path.iterdir()] == ["j_test.jsonl"]
