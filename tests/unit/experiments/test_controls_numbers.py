"""The controls' numbers, on a few cases by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from introspect_ray.experiments.controls_cases import Coded
from introspect_ray.experiments.controls_estimate import Bootstrap, mean_of_runs, pooled_ratio
from introspect_ray.experiments.controls_labels import constant_scores, constants, shuffled
from introspect_ray.experiments.controls_siblings import (
    drift_swap,
    matrix,
    nearest,
    same_distance,
    second_generation,
    sibling_scores,
)


def coded(said, own, orig, strata=None) -> Coded:
    """Lists by run, or of one run; every case is a question of its own. -1: unparseable."""
    arrays = [np.atleast_2d(np.array(values)) for values in (said, own, orig)]
    n = arrays[0].shape[1]
    return Coded(*arrays, question_N=np.arange(n), stratum_N=np.array(strata or [0] * n))


def values(numbers) -> dict[str, float]:
    return {name: number.value for name, number in numbers.items()}


A_AND_B = coded(
    said=[[1, 0, 0, 0], [0, 0, 0, 2]],
    own=[[1, 0, 0, 2], [0, 3, 0, 2]],
    orig=[[0, 0, 0, 0], [0, 0, 0, 0]],
)
DRAWS = Bootstrap(A_AND_B.question_N)


def test_two_questions_give_an_interval_between_them():
    """Question 0: 2 of its 2 cases; question 1: 0 of its 1. Value 2/3; a draw takes n - 1 = 1 question: 1 or 0."""
    columns_RNK = np.array([[[1, 1], [0, 1], [1, 1]]])  # a hit, and a case
    number = Bootstrap(np.array([0, 1, 0])).estimate(columns_RNK, mean_of_runs(lambda sums: sums[..., 0], 1))
    assert number.value == pytest.approx(2 / 3) and (number.low, number.high) == (0, 1)
    assert (number.runs, number.questions) == (1, 2)


def test_runs_are_drawn_too():
    """Both questions agree, so what varies is the run: a draw takes one of the two, with 1 or 0."""
    columns_RNK = np.array([[[1, 1]] * 2, [[0, 1]] * 2])
    number = Bootstrap(np.array([0, 1])).estimate(columns_RNK, mean_of_runs(lambda sums: sums[..., 0], 1))
    assert number[:3] == (0.5, 0, 1)


def test_a_pooled_ratio_weighs_every_case_the_same():
    """Run 0 counts 1 of 3, run 1 1 of 1: 2 of 4 together; the mean over runs would be 2/3."""
    columns_RNK = np.array([[[1, 1], [0, 1], [0, 1]], [[1, 1], [0, 0], [0, 0]]])
    assert Bootstrap(np.arange(3)).estimate(columns_RNK, pooled_ratio(0, 1)).value == 0.5


def test_a_number_over_no_case_is_not_a_number():
    number = Bootstrap(np.arange(2)).estimate(np.zeros((1, 2, 2)), pooled_ratio(0, 1))
    assert np.isnan(number[:3]).all()


def test_siblings_by_hand():
    """A is right of itself on 0, 1, 2, of M0 on 1, 2, 3, of B on 2. B is right of itself on 0, 2, 3, of M0 on 0, 1, 2,
    of A on 1, 2, 3. Means: Self 3/4, Orig 3/4, sibling (1/4 + 3/4) / 2 = 1/2."""
    assert values(sibling_scores(A_AND_B, DRAWS)) == {
        "self": 0.75,
        "orig": 0.75,
        "self - orig": 0,
        "sibling": 0.5,
        "self - sibling": 0.25,
        "orig - sibling": 0.25,
    }
    assert matrix(A_AND_B) == [[0.75, 0.25, 0.75], [0.75, 0.75, 0.75]]


def test_one_run_has_no_siblings():
    assert list(sibling_scores(A_AND_B.at([1]), DRAWS)) == ["self", "orig", "self - orig"]


def test_drift_swap_by_hand():
    """Only A left M0 on 0, only B on 1; on 3 both did, so it does not count. A states its own new label (1 on case 0),
    B does not (0 instead of 3 on case 1): own 1/2. Neither states the other's: 0/2."""
    numbers, count = drift_swap(A_AND_B, DRAWS)
    assert values(numbers) == {"own": 0.5, "sibling's": 0, "own - sibling's": 0.5}
    assert count == 2


def test_drift_swap_of_runs_that_tell_each_others_drift():
    """The same, but A says what is new of B on case 1, and B what is new of A on case 0: the sibling's 2/2, own 0/2."""
    swapped = coded(said=[[0, 3, 0, 0], [1, 0, 0, 0]], own=A_AND_B.own_RN, orig=A_AND_B.orig_RN)
    assert values(drift_swap(swapped, DRAWS)[0]) == {"own": 0, "sibling's": 1, "own - sibling's": -1}


def test_nearest_distance():
    assert nearest([0.7, 0.8, 0.65], 0, range(3)) == 2
    assert nearest([0.7, 0.8, 0.65], 0, [0, 1]) == 1
    assert nearest([0.7], 0, range(1)) is None


def test_same_distance_by_hand():
    """A of A_AND_B is right of itself on 3 of 4, of another policy (0 0 0 1) on 1, 2."""
    numbers = same_distance(A_AND_B.at([0]), np.array([[0, 0, 0, 1]]), DRAWS)
    assert values(numbers) == {"A→B": 0.5, "self - A→B": 0.25}


def test_second_generation_by_hand():
    """M_reg does 0 1 0 0 and says so: 4/4 of itself, 2/4 of M0 (on 0 and 2). The pupil says 0 1 1 0: 3/4 of M_reg."""
    teacher = coded([0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1])
    pupil = coded([0, 1, 1, 0], [2, 2, 2, 2], [0, 1, 0, 0])
    assert values(second_generation(pupil, teacher, DRAWS)) == {
        "second generation explains M_reg": 0.75,
        "M_reg explains itself": 1,
        "M_reg explains M0": 0.5,
        "M_reg explains itself - second generation": 0.25,
        "second generation - M_reg explains M0": 0.25,
    }


ONE = coded([0, 0, 1, -1], [0, 1, 1, 0], [0, 0, 0, 1], strata=[0, 0, 1, 1])


def test_shuffled_labels_by_hand():
    """Said 0 on 2/4, 1 on 1/4, unparsed 1/4. The run's labels are 0 and 1 on half each: 2/4 · 1/2 + 1/4 · 1/2 = 3/8;
    M0's are 0 on 3/4: 2/4 · 3/4 + 1/4 · 1/4 = 7/16. Self and Orig are 1/2: (1/2 - 3/8) - (1/2 - 7/16) = 1/16."""
    assert values(shuffled(ONE, DRAWS)) == {
        "self shuffled": 3 / 8,
        "orig shuffled": 7 / 16,
        "gap shuffled": -1 / 16,
        "gap beyond marginals": 1 / 16,
    }


def test_shuffled_labels_are_the_mean_over_all_permutations():
    said, own = ONE.said_RN[0], ONE.own_RN[0]
    every = [np.mean(said == np.array(order)) for order in permutations(own)]
    assert np.mean(every) == pytest.approx(shuffled(ONE, DRAWS)["self shuffled"].value)


def test_shuffled_within_a_cue_by_hand():
    """Cue 0: said 0 0, the run's 0 1: 1 hit expected; M0's 0 0: 2. Cue 1: said 1 and unparsed, the run's 1 0: 1/2, M0's
    0 1: 1/2. Self 3/8, Orig 5/8, so beyond marginals (1/2 - 3/8) - (1/2 - 5/8) = 1/4."""
    assert values(shuffled(ONE, DRAWS, within_cue=True)) == {
        "self shuffled": 3 / 8,
        "orig shuffled": 5 / 8,
        "gap shuffled": -1 / 4,
        "gap beyond marginals": 1 / 4,
    }


def test_a_run_that_collapses_onto_what_it_always_says_has_no_gap_beyond_marginals():
    """Self 1, Orig 1/4, a gap of 3/4; but a shuffle leaves both as they are."""
    numbers = shuffled(coded([0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 2, 1]), DRAWS)
    assert numbers["gap shuffled"].value == 0.75
    assert numbers["gap beyond marginals"][:3] == pytest.approx((0, 0, 0))


def test_constants_by_hand():
    """M0: 0 on 3 of 5, 1 on 2. The run: 0 on 3 of 5, 2 on 2: 2 gains most. Always saying 2 has Self 2/5, Orig 0. The
    run says 0 0 0 0 2: right of itself on 0, 1, 2, 4, of M0 on 0, 1, 2: gap 1/5, 1/5 less than the constant's."""
    run = coded([0, 0, 0, 0, 2], [0, 0, 0, 2, 2], [0, 0, 0, 1, 1])
    assert constants(run) == {"M0's most frequent": [0], "the run's most frequent": [0], "largest gap": [2]}
    assert values(constant_scores(run, [2], Bootstrap(run.question_N))) == pytest.approx(
        {"self": 0.4, "orig": 0, "gap": 0.4, "gap of the run - constant's": -0.2}
    )
