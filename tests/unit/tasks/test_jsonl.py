"""Cases from JSONL: what is accepted, and one message with file, line and remedy for what is not."""

import gzip
import json

import pytest

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Response, Templates
from introspect_ray.tasks import load_cases, open_task
from introspect_ray.tasks.jsonl import case_file

UNCHANGED = "The response would not change from {label}."


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
    assert case.case_id == "q1" and case.labels == ("A", "B") and case.response == Response()
    assert case.meta_question == "If the cue were removed, how would the assistant's answer change?"
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
        ([turn("Hint: A")], [turn("Hint: B")]),  # replaced
        ([turn("X a Y b")], [turn("a b")]),  # two spans
        ([turn("Be kind.", "system"), turn("a")], [turn("Be rude.", "system"), turn("a")]),
        ([turn("a")], [turn("Be rude.", "system"), turn("a")]),  # added
    ],
)
def test_the_cue_may_go_or_change(tmp_path, messages, ablated):
    (case,) = read_cases(write(tmp_path, row(messages=messages, ablated_messages=ablated)))
    assert (list(case.messages), list(case.ablated_messages)) == (messages, ablated)


def test_a_replaced_cue_is_asked_about_as_such(tmp_path):
    swapped = row(ablated_messages=[turn("2+2?\n(A) 3 (B) 4\nHint: B")])
    replaced, own = read_cases(write(tmp_path, swapped, row(id="q2", meta_question="Why?")))
    assert replaced.meta_question == "If the cue were replaced, how would the assistant's answer change?"
    assert own.meta_question == "Why?"


def test_the_optional_keys(tmp_path):
    given = row(
        response={"kind": "free", "judge": "llm", "max_tokens": 40},
        labels=["refuse", "comply"],
        group="role",
        metadata={"source": "x", "n": [1, None, {"deep": True}]},
        templates={"changed": "Now {label}.", "labels": {"comply": "it helps"}},
    )
    (case,) = read_cases(write(tmp_path, given))
    assert case.response == Response("free", "llm", 40) and case.group == "role"
    assert case.metadata == given["metadata"]
    assert case.templates == Templates("Now {label}.", "", (("comply", "it helps"),))


def test_wording_of_file_and_config_is_applied_and_checked_where_cases_are_loaded(tmp_path):
    rows = [row(id=f"q{i}", messages=[turn(f"{i} CUE")], ablated_messages=[turn(f"{i} ")]) for i in range(2)]
    path = write(tmp_path, *(one | {"templates": {"labels": {"A": "alpha"}}} for one in rows))
    task = TaskConfig(name="jsonl", path=str(path), changed="Now {label}.", meta_question="How?")
    for case in (case for side in load_cases(task) for case in side):
        assert (
            case.templates == Templates("Now {label}.", UNCHANGED, (("A", "alpha"),)) and case.meta_question == "How?"
        )
    with pytest.raises(UserError, match=rf"^{path} line 1: the templates write labels 'A' and 'B' alike"):
        load_cases(TaskConfig(name="jsonl", path=str(path), label_names={"B": "alpha"}))


BAD = {
    "malformed": ('{"id": "q1", ', "not valid JSON"),
    "no number": ('{"id": 1e999}', "1e999 is beyond all numbers"),
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
    "nothing removed": (row(ablated_messages=row()["messages"]), "equals messages; remove or replace the cue"),
    "response of no kind": (row(response={"max_tokens": 3}), "key 'response.kind' is missing"),
    "unknown response key": (
        row(response={"kind": "free", "length": 3}),
        "'response.length'; the keys are kind, judge",
    ),
    "free without length": (row(response={"kind": "free"}), "key 'response': kind free needs max_tokens"),
    "labels with a length": (row(response={"kind": "labels", "max_tokens": 3}), "are for kind free"),
    "unknown judge": (row(response={"kind": "free", "max_tokens": 3, "judge": "me"}), "key 'response.judge'"),
    "metadata no object": (row(metadata=[1]), "key 'metadata'"),
    "metadata not JSON": ('{"metadata": {"a": NaN}}', "NaN is no JSON value"),
    "unknown template": (
        row(templates={"same": "{label}"}),
        "'templates.same'; the keys are changed, unchanged, labels",
    ),
    "display text of no label": (row(templates={"labels": {"E": "e"}}), "names 'E', which is none of the labels"),
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


@pytest.mark.parametrize("key", ["path", "test_path"])
def test_the_bundled_task_takes_no_files(key):
    """It would not read them."""
    with pytest.raises(UserError, match=rf"task\.{key}=mine.jsonl does not go with task.name=organism"):
        open_task(TaskConfig(name="organism", **{key: "mine.jsonl"}))
