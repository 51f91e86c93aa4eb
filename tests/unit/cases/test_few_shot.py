"""Few-shot chats and the choice of their examples."""

from collections import Counter

import pytest

from introspect_ray.cases.few_shot import few_shot_messages, shots_of
from introspect_ray.errors import UserError
from introspect_ray.records import Case, Explanation, Templates

UNSAID = Templates()


def turn(content, role="user"):
    return {"role": role, "content": content}


def case(name, x, ablated, templates=UNSAID):
    return Case(name, tuple(x), tuple(ablated), "And without it?", ("A", "B"), templates=templates)


def test_examples_stand_before_the_question_as_turns():
    """Wordings are those of each example; the system turn of the first one joins its user turn."""
    role = [turn("You judge.", "system"), turn("story")]
    examples = [
        (case("e1", role, role[1:]), Explanation(True, "B")),
        (case("e2", [turn("2 C")], [turn("2")], Templates(unchanged="Still {label}.")), Explanation(False, "A")),
    ]
    asked = case("q", [turn("Be brief.", "system"), turn("3 C")], [turn("Be brief.", "system"), turn("3")])
    assert few_shot_messages(asked, examples) == (
        turn("Be brief.", "system"),
        turn("You judge.\n\nstory\nAnd without it?"),
        turn("The response would change to B.", "assistant"),
        turn("2 C\nAnd without it?"),
        turn("Still A.", "assistant"),
        turn("3 C\nAnd without it?"),
    )
    assert few_shot_messages(asked, []) == (turn("Be brief.", "system"), turn("3 C\nAnd without it?"))


def test_an_example_of_the_same_question_is_refused():
    asked, other = (case(name, [turn(f"2 {cue}")], [turn("2")]) for name, cue in (("q", "C"), ("e", "D")))
    with pytest.raises(ValueError, match="'e' asks the same question"):
        few_shot_messages(asked, [(other, Explanation(True, "A"))])


def test_draws_depend_on_seed_and_case_alone():
    ids = [f"c{i}" for i in range(50)]
    assert shots_of("q", ids, 3, 0) == shots_of("q", ids, 3, 0) != shots_of("q", ids, 3, 1)
    assert shots_of("q", ids, 2, 0) == shots_of("q", ids, 3, 0)[:2]
    assert shots_of("q", ids, 3, 0) != shots_of("r", ids, 3, 0)


def test_draws_are_distinct_uniform_and_never_the_case_itself():
    """2,000 cases draw 2 of 4 ids: each is drawn 1,000 ± 4 sd of 22 times. A case draws all others of a small set."""
    ids = ["a", "b", "c", "d"]
    drawn = [shots_of(f"q{i}", ids, 2, 0) for i in range(2000)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    assert all(abs(count - 1000) < 90 for count in Counter(one for pair in drawn for one in pair).values())
    assert sorted(shots_of("b", ids, 3, 0)) == ["a", "c", "d"]
    for case_id, k in (("b", 4), ("q", 5)):
        with pytest.raises(UserError, match=f"task.shots={k}"):
            shots_of(case_id, ids, k, 0)
