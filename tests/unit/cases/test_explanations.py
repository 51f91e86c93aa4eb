"""Template out, template in: explanations.render and explanations.parse."""

import pytest

from introspect_ray.cases.explanations import all_explanations, parse, render
from introspect_ray.records import Explanation

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
