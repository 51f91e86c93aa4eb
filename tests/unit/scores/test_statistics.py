"""Intervals whose bootstrap distribution can be written down, over questions, seeds and worlds; t tests by hand."""

import pytest
from evaluated import cases

from introspect_ray.records import Explanation as E
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.statistics import clustered, equivalent, inside, over_worlds, paired_t, run_differences


def run(differences: str, questions: str, splits: str = "") -> EvaluatedCases:
    """Cases with the given differences in EM: "+" right by Self only, "-" by Orig only, "0" by neither. The policy
    says AA and M0 BB everywhere, so content and exact match are the same."""
    said = {"+": E(False, "A"), "-": E(False, "B"), "0": None}
    n = len(differences)
    names = {"d": "dev", "t": "test"}
    return cases(
        "AA " * n, "BB " * n, [said[one] for one in differences],
        questions=list(questions), splits=[names[one] for one in splits or "t" * n],
    )  # fmt: skip


def test_run_differences_by_hand():
    """Self (T,B) (F,A) (F,C), Orig (T,B) (T,A) (F,C); said (T,B) (F,A) and nothing: 0, 1, 0; in *changed?* the same,
    in content 0, 0, 0. Against the second policy, (F,B) (F,A) (F,C): 1, 0, 0."""
    some = cases("AB AA CC", "AB BA CC", [E(True, "B"), E(False, "A"), None], second="BB AA CC", questions=list("qqr"))
    differences, questions = run_differences(some)
    assert differences.tolist() == [0, 1, 0] and questions == ["q", "q", "r"]
    assert run_differences(some, "content")[0].tolist() == [0, 0, 0]
    assert run_differences(some, "changed_accuracy")[0].tolist() == [0, 1, 0]
    assert run_differences(some, b="second")[0].tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match=r"'f1'.*em, content"):
        run_differences(some, "f1")
    with pytest.raises(ValueError, match=r"no policy 'third'.*m0, policy, second"):
        run_differences(some, b="third")


def test_questions_are_drawn_whole():
    """Question a has three cases right by Self, b one by Orig: the mean is 2/4. One of the two is drawn, so the means
    are 1 and -1; drawing cases would never reach -1."""
    found = clustered([run("+++-", "aaab")])
    assert found == (0.5, -1.0, 1.0, "95 % bootstrap interval over 2 questions", 1, 2)


def test_seeds_are_drawn_with_their_questions():
    """Two seeds, two questions of two cases: 1 and 0, ½ and -½. One seed and one question are drawn, so each of the
    four means has probability ¼. The mean of all is (1 + 0 + ½ - ½) / 4."""
    runs = [run("++00", "aabb"), run("+00-", "aabb")]
    assert clustered(runs) == (0.25, -0.5, 1.0, "95 % bootstrap interval over 2 seeds x 2 questions", 2, 2)


def test_one_less_than_all_seeds_are_drawn():
    """Four seeds with gaps 0 0 0 1. Three draws: all three are the last seed with probability 1/64 < 2.5 %, at least
    two with 10/64, so the interval ends at 2/3. Four draws would end at 3/4, of which less is drawn above."""
    runs = [run("00", "ab")] * 3 + [run("++", "ab")]
    assert clustered(runs)[:3] == (0.25, 0.0, pytest.approx(2 / 3))


@pytest.mark.parametrize("cases_per_question", [1, 3])
def test_the_interval_is_as_wide_as_the_cluster_variance(cases_per_question):
    """100 questions, 30 right by Self and 10 by Orig: 0.2, variance (0.4 - 0.04) / 99 = 0.00363636, 1.96 times its root
    is 0.118. Three equal cases per question tell nothing more; drawing cases would give 0.068."""
    text = ("+" * 30 + "-" * 10 + "0" * 60) * cases_per_question
    found = clustered([run(text, "".join(map(chr, range(100))) * cases_per_question)])
    assert found.value == pytest.approx(0.2) and found.questions == 100
    assert (found.high - found.low) / 2 == pytest.approx(0.118, abs=0.008)


def test_worlds_count_the_same_and_are_drawn():
    """A world of two cases with gap 1 and one of six with gap 0: the mean is ½, not 2/8, and one of them is drawn."""
    worlds = {"0": [run("++", "ab")], "1": [run("000000", "abcdef")] * 2}
    assert over_worlds(worlds) == (
        0.5, 0.0, 1.0, "95 % bootstrap interval over 2 worlds, then their seeds (3 runs) x questions (8)", 3, 8,
    )  # fmt: skip


def test_seeds_and_questions_are_drawn_within_worlds():
    """Two equal worlds with one question at 1 and one at 0: only the draw of questions moves the mean."""
    assert over_worlds({"0": [run("+0", "ab")], "1": [run("+0", "ab")]})[:3] == (0.5, 0.0, 1.0)


def test_results_are_of_the_test_split():
    some = run("+00--", "abcde", "tttdd")
    assert clustered([some]).value == pytest.approx(1 / 3) and clustered([some], split="dev").value == -1
    assert clustered([some], split=None).value == pytest.approx(-1 / 5)
    assert over_worlds({"0": [some]}, split="dev").value == -1


def test_the_same_cases_give_the_same_interval():
    some = [run("+0-0+", "abcde"), run("00+0+", "abcde")]
    assert clustered(some) == clustered(some) and over_worlds({"0": some}) == over_worlds({"0": some})


def test_one_question_gives_no_interval():
    assert clustered([run("++0", "aaa")])[1:4] == (-1.0, 1.0, "no interval: one question alone")


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], r"needs runs with cases of the test split; got \[\]"),
        ([run("+0", "ab", "dd")], r"got \[0\]"),
        ([run("+0", "ab"), run("+0", "ac")], "runs of other questions"),
        ([run("+0", "ab"), run("+00", "abb")], "other cases per question"),
        ([run("+0", "ab"), run("+", "a")], "other cases per question"),
    ],
)
def test_runs_that_cannot_be_drawn_together(runs, message):
    with pytest.raises(ValueError, match=message):
        clustered(runs)
    with pytest.raises(ValueError, match="no worlds"):
        over_worlds({})


def test_paired_t_by_hand():
    """0.1, 0.2, 0.3: sd 0.1, t = 4.302653: 0.2 ± 4.302653 · 0.1 / sqrt 3 = 0.2 ± 0.248414."""
    found = paired_t([0.1, 0.2, 0.3])
    assert found[:3] == pytest.approx((0.2, -0.048414, 0.448414), abs=1e-6)
    assert found[3:] == ("95 % t interval over 3 seeds", 3, 0)
    with pytest.raises(ValueError, match="at least two; got 1"):
        paired_t([0.4])


def test_equivalence_by_hand():
    """-0.01, 0, 0.01: sd 0.01, 95 % quantile of t 2.919986: 0 ± 2.919986 · 0.01 / sqrt 3 = ± 0.016859, inside ±0.02 and
    not inside ±0.015. The 95 % interval, ± 0.0248, would not be inside either: it would test at 2.5 %."""
    found = equivalent([-0.01, 0.0, 0.01], margin=0.02)
    assert found[:3] == pytest.approx((0.0, -0.016859, 0.016859), abs=1e-6)
    assert found.method == "90 % t interval over 3 seeds against ±0.02 (TOST at 5 %): no gap" and inside(found, 0.02)
    wide = equivalent([-0.01, 0.0, 0.01], margin=0.015)
    assert wide.method.endswith("a gap is not ruled out") and not inside(wide, 0.015)


def test_a_clear_gap_is_not_equivalent_to_none():
    """The interval lies above the margin: not finding no gap is not enough, both sides must hold."""
    assert not inside(equivalent([0.1, 0.1, 0.11], margin=0.05), 0.05)
    with pytest.raises(ValueError, match="margin above 0"):
        equivalent([0.1, 0.2], margin=0.0)
