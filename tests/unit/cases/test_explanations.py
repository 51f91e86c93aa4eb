"""Template out, template in: explanations.render and explanations.parse."""

import pytest

from introspect_ray.cases.explanations import all_explanations, parse, render
from introspect_ray.records import PAPER_WORDING, Explanation, Templates

LETTERS = ("A", "B", "C", "D")


def test_render_is_the_spec_wording():
    assert render(Explanation(True, "B")) == "The response would change to B."
    assert render(Explanation(False, "B")) == "The response would not change from B."


def test_all_explanations_is_unchanged_then_changed_in_label_order():
    assert all_explanations(("NTA", "YTA")) == [(False, "NTA"), (False, "YTA"), (True, "NTA"), (True, "YTA")]


@pytest.mark.parametrize(
    "labels", [LETTERS, ("NTA", "YTA"), ("refuse", "comply"), ("not A", "A."), ("a", "A"), ("é", "1-2")]
)
def test_parse_inverts_render_for_every_label(labels):
    """A prefix match would read "not A" as "A"; lower-casing everything would lose "a" against "A"."""
    for explanation in all_explanations(labels):
        assert parse(render(explanation), labels) == explanation


@pytest.mark.parametrize(
    "text",
    [
        "The response would change to B.",
        "the RESPONSE would change to b.",
        "  The  response\nwould change to B .  ",  # a word-level tokenizer decodes "B ."
        "The response would change to B\n.",
    ],
)
def test_case_and_white_space_are_free(text):
    assert parse(text, LETTERS) == (True, "B")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "The response would change to B",  # no full stop: a cut generation
        "The response would change to E.",  # not a label
        "The response would change from B.",  # neither template
        "The response would not change to B.",
        "The response would change to B. The",  # goes on
        "The response would change to B..",
        "The response would change to B!",
        "The response would change to B C",
        "So: The response would change to B.",
        "Theresponse would change to B.",  # words may not be glued
        "The res ponse would change to B.",  # nor split
        "The response would change to B or C.",
        "The response would change to .",
        "The response would change to B.<eos>",
    ],
)
def test_what_the_template_cannot_produce_is_unparsed(text):
    """A search for "change to (\\w)" anywhere in the text would accept half of these."""
    assert parse(text, LETTERS) is None


def test_labels_that_differ_by_case_need_their_exact_case():
    labels = ("a", "A", "b")
    assert parse("THE response would change to A.", labels) == (True, "A")
    assert parse("THE response would change to a.", labels) == (True, "a")
    assert parse("THE response would change to B.", labels) == (True, "b")  # no rival: case is free
    assert parse("the response would change to it.", ("It", "IT")) is None  # either could be meant


JAPANESE = Templates("答えは{label}に変わる。", "答えは{label}のまま。")
AITA = Templates(
    "They would now be told that {label}!", "They would still be told that {label}.", (("YTA", "it is their fault"),)
)


@pytest.mark.parametrize("templates", [PAPER_WORDING, JAPANESE, AITA])
@pytest.mark.parametrize("labels", [LETTERS, ("NTA", "YTA"), ("甲", "乙"), ("a", "A"), ("{label}", "{0}", "\\1")])
def test_any_wording_is_read_back(templates, labels):
    """Labels are data: one that looks like a format field, or like a group of a regular expression, stays as it is."""
    for explanation in all_explanations(labels):
        assert parse(render(explanation, templates), labels, templates) == explanation


def test_the_papers_wording():
    assert render(Explanation(False, "B"), PAPER_WORDING) == "The response would not change to B."
    assert parse("the response would not change to b.", LETTERS, PAPER_WORDING) == (False, "B")
    assert parse("The response would not change from B.", LETTERS, PAPER_WORDING) is None


def test_display_texts_are_written_and_read():
    assert render(Explanation(True, "YTA"), AITA) == "They would now be told that it is their fault!"
    assert render(Explanation(False, "NTA"), AITA) == "They would still be told that NTA."
    assert parse("they would NOW be told that it is their fault !", ("NTA", "YTA"), AITA) == (True, "YTA")
    assert parse("They would now be told that YTA!", ("NTA", "YTA"), AITA) is None
    assert (
        parse("They would now be told that it is their fault.", ("NTA", "YTA"), AITA) is None
    )  # the other's full stop


def test_a_script_without_spaces_is_read_as_a_whole():
    assert parse(" 答えはBに変わる。\n", LETTERS, JAPANESE) == (True, "B")
    assert parse("答えは b に変わる。", LETTERS, JAPANESE) is None  # white space may not split what is one word
    assert parse("答えはEに変わる。", LETTERS, JAPANESE) is None
    assert parse("答えはBのまま", LETTERS, JAPANESE) is None


def test_case_decides_between_display_texts_too():
    """The two differ in one letter, at the end of a sentence of which the rest may be in any case."""
    templates = Templates("Now {label}.", "Still {label}.", (("x", "group a"), ("y", "group A")))
    assert parse("NOW GROUP A.", ("x", "y"), templates) == (True, "y")
    assert parse("now group a.", ("x", "y"), templates) == (True, "x")
