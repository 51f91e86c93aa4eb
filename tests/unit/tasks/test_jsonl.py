"""Cases from JSONL: what is accepted, and one message with file, line and remedy for what is not."""

import gzip
import json

import pytest

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.tasks import open_task
from introspect_ray.tasks.jsonl import META_QUESTION, case_file


def read_cases(path):
    return [case for _, case in case_file(path).cases()]


def turn(content, role="user"):
    return {"role": role, "content": content}


def row(**changes):
    base = {
        "id": "q1",
        "messages": [turn("2+2?\n(A) 3 (B) 4\nHint: A")],
        "ablated_messages": [turn("2+2?\n(A) 3 (B) 4")],
        "labels": ["A", "B"],
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def write(tmp_path, *rows):
    path = tmp_path / "cases.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_reads_a_case_with_the_default_meta_question(tmp_path):
    (case,) = read_cases(write(tmp_path, row()))
    assert case.case_id == "q1" and case.labels == ("A", "B") and case.meta_question == META_QUESTION
    assert case.messages[0]["content"].endswith("Hint: A") and "Hint" not in case.ablated_messages[0]["content"]


def test_reads_gzip_and_keeps_order(tmp_path):
    path = tmp_path / "cases.jsonl.gz"
    path.write_bytes(
        gzip.compress("\n".join(json.dumps(row(id=f"q{i}", meta_question="Why?")) for i in (2, 0, 1)).encode())
    )
    cases = read_cases(path)
    assert [c.case_id for c in cases] == ["q2", "q0", "q1"] and cases[0].meta_question == "Why?"


@pytest.mark.parametrize(
    "messages,ablated",
    [
        ([turn("a CUE b")], [turn("a b")]),  # in the middle
        ([turn("CUE a")], [turn("a")]),  # at the start
        ([turn("aaa")], [turn("aa")]),  # overlapping prefix and suffix
        ([turn("You are kind.", "system"), turn("a")], [turn("a")]),  # a whole system turn
        ([turn("Be kind. CUE", "system"), turn("a")], [turn("Be kind.", "system"), turn("a")]),
        ([turn("a"), turn("b", "assistant"), turn("c CUE")], [turn("a"), turn("b", "assistant"), turn("c")]),
    ],
)
def test_one_contiguous_span_may_go(tmp_path, messages, ablated):
    assert len(read_cases(write(tmp_path, row(messages=messages, ablated_messages=ablated)))) == 1


BAD = {
    "malformed": ('{"id": "q1", ', "not valid JSON"),
    "no object": ("[1]", "expected a JSON object, found list"),
    "blank line": ("", "blank line; delete it"),
    "missing key": (row(labels=None), "key 'labels' is missing"),
    "missing content": (row(messages=[{"role": "user"}]), "key 'messages.0.content' is missing"),
    "unknown key": (row(answer="B"), "unknown key 'answer'; the keys are id, messages"),
    "unknown key in a turn": (row(messages=[turn("x") | {"name": "y"}]), "unknown key 'messages.0.name'"),
    "role": (row(messages=[turn("x", "tool")]), "key 'messages.0.role'"),
    "number as id": (row(id=7), "key 'id'"),
    "blank id": (row(id=" "), "key 'id': must not be blank"),
    "blank content": (row(messages=[turn(" ")]), "key 'messages.0.content': must not be blank"),
    "blank label": (row(labels=["A", ""]), "must not be blank"),
    "one label": (row(labels=["A"]), "1 labels; a behaviour needs at least two"),
    "label twice": (row(labels=["A", "B", "A"]), "label 'A' stands twice"),
    "no turns": (row(messages=[]), "must end with a user turn"),
    "ends with the assistant": (row(messages=[turn("x"), turn("y", "assistant")]), "must end with a user turn"),
    "late system turn": (row(messages=[turn("x"), turn("s", "system"), turn("y")]), "not the first"),
    "nothing removed": (row(ablated_messages=row()["messages"]), "equals messages; remove the cue"),
    "replaced": (row(ablated_messages=[turn("2+2?\n(A) 3 (B) 4\nHint: B")]), "one contiguous span removed"),
    "two spans": (row(messages=[turn("X a Y b")], ablated_messages=[turn("a b")]), "one contiguous span removed"),
    "added": (row(messages=[turn("a")], ablated_messages=[turn("a CUE")]), "one contiguous span removed"),
}


@pytest.mark.parametrize("bad,message", BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_named_with_its_number(tmp_path, bad, message):
    path = write(tmp_path, row(id="good"), bad, row(id="last"))
    with pytest.raises(UserError) as error:
        read_cases(path)
    assert str(error.value).startswith(f"{path} line 2: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_task_needs_a_path():
    with pytest.raises(UserError, match=r"task\.name=jsonl needs task\.path"):
        open_task(TaskConfig(name="jsonl"))
