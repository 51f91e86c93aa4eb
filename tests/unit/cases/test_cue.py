"""Deletions among the differences between x and x∖C."""

import pytest

from introspect_ray.cases.cue import REMOVED, REPLACED, default_meta_question, deleted_span


def turn(content, role="user"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "ablated", "span"),
    [
        ([turn("a CUE b")], [turn("a b")], "CUE "),
        ([turn("CUE a")], [turn("a")], "CUE "),
        ([turn("aaa")], [turn("aa")], "a"),  # prefix and suffix overlap
        ([turn("Be kind.", "system"), turn("a")], [turn("a")], "system: Be kind.\n"),
        ([turn("Be kind. CUE", "system"), turn("a")], [turn("Be kind.", "system"), turn("a")], " CUE"),
        ([turn("a"), turn("b", "assistant"), turn("c CUE")], [turn("a"), turn("b", "assistant"), turn("c")], " CUE"),
    ],
)
def test_one_deleted_span(messages, ablated, span):
    assert deleted_span(messages, ablated) == span
    assert default_meta_question(messages, ablated) == REMOVED


@pytest.mark.parametrize(
    ("messages", "ablated"),
    [
        ([turn("Hint: A")], [turn("Hint: B")]),  # replaced
        ([turn("X a Y b")], [turn("a b")]),  # two spans
        ([turn("a")], [turn("a CUE")]),  # added
        ([turn("Be kind.", "system"), turn("a")], [turn("Be rude.", "system"), turn("a")]),
        ([turn("a")], [turn("Be rude.", "system"), turn("a")]),
    ],
)
def test_no_deletion(messages, ablated):
    assert deleted_span(messages, ablated) is None
    assert default_meta_question(messages, ablated) == REPLACED
