"""The split of questions, and what repeated questions are worth; by hand."""

import pytest

from introspect_ray.scores.questions import design_effect, splits

TWENTY = [f"q{i % 20}" for i in range(50)]  # questions 0 to 9 have three cases, the others two


def dev(fraction: float, seed: int = 0, questions: list[str] = TWENTY) -> set[str]:
    found = splits(questions, fraction, seed)
    return {question for question, split in zip(questions, found, strict=True) if split == "dev"}


def test_a_share_of_the_questions_is_dev_with_all_their_cases():
    found = splits(TWENTY, 0.2, 0)
    assert len(dev(0.2)) == 4 and set(found) == {"dev", "test"}
    assert all(found[row] == found[row + 20] for row in range(30))  # the next case of the same question


def test_the_split_is_of_questions_and_seed_alone():
    assert dev(0.2) == dev(0.2, questions=sorted(TWENTY)) != dev(0.2, seed=1)
    assert dev(0.2) < dev(0.5) and dev(0) == set()


def test_a_test_split_is_always_left():
    assert len(dev(0.99)) == 19


def test_nine_questions_are_too_few_to_split():
    nine, ten = ([f"q{i}" for i in range(n)] for n in (9, 10))
    assert splits(nine, 0.2, 0) == ["test"] * 9 and splits(ten, 0.2, 0).count("dev") == 2


def test_design_effect_by_hand():
    """Values 1 1 0 0, e = ½ ½ -½ -½, sum of e² 1. In pairs of equals the sums are 1 and -1: effect 2, four cases are
    worth two. Where each pair has one of both the sums are 0, in a question of 1 1 0 and one of 0 they are ½ and -½:
    cases are never worth more than themselves. 1 1 1 in one question, 0 0 and 0 in others: sums 3/2, -1 and -½."""
    assert design_effect([1, 1, 0, 0], list("aabb")) == 2
    assert design_effect([1, 1, 0, 0], list("abab")) == 1
    assert design_effect([1, 1, 0, 0], list("aaab")) == 1
    assert design_effect([1, 1, 0, 0], list("abcd")) == 1
    assert design_effect([1, 1, 1, 0, 0, 0], list("aaabbc")) == pytest.approx((1.5**2 + 1 + 0.25) / 1.5)


def test_values_without_spread_count_once_per_question():
    assert design_effect([0, 0, 0, 0], list("aabb")) == 2 and design_effect([0, 0], list("ab")) == 1


def test_a_design_effect_needs_a_question_per_value():
    with pytest.raises(ValueError, match="got 2 and 1"):
        design_effect([1, 0], ["a"])
