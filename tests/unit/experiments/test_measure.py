"""Contrasts between runs, and the average of figure 9, against numbers by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from introspect_ray.config import load_config
from introspect_ray.experiments.drift import smoothed, time_weighted
from introspect_ray.experiments.measure import contrast, explained, gap_of, same_behavior
from introspect_ray.experiments.protocol import Run
from introspect_ray.records import Explanation

sys.path.insert(0, str(Path(__file__).parents[1] / "scores"))
from evaluated import cases

CHANGED_A, SAME_B = Explanation(True, "A"), Explanation(False, "B")


def run(evaluated, seed: int = 0, weight: float = 1.0) -> Run:
    made = Run("s", None, {"kl_weight": weight}, seed, load_config(), "", {"explanation": {}})
    made.__dict__["_cases"] = evaluated  # what cases() reads from a file
    return made


def test_a_contrast_with_two_runs_of_one_pairing_is_refused():
    one = run(cases("BA", "BA", [CHANGED_A]))
    with pytest.raises(ValueError, match="2 runs to compare with, of 1 organisms and seeds"):
        contrast([one], [one, one], explained())


def test_a_contrast_is_the_difference_of_two_scores_over_the_same_cases():
    """Two cases. high is right about itself on both and about M0 on the first; low on the second and on none:
    Self 1 - 1/2, gap (1 - 1/2) - (1/2 - 0) = 0."""
    high = run(cases("BA BB", "BA CC", [CHANGED_A, SAME_B]))
    low = run(cases("AA BB", "CC CC", [CHANGED_A, SAME_B]), weight=0.0)
    assert contrast([high], [low], explained()).value == pytest.approx(0.5)
    assert contrast([high], [low], gap_of()).value == pytest.approx(0.0)
    assert contrast([high], [low], same_behavior()).value == pytest.approx(0.5)
    assert contrast([high], [low], explained("self"), explained("orig")).value == pytest.approx(1.0)


def test_runs_are_paired_by_seed():
    """Seed 1 has no partner, and without any pair there is no number."""
    right, wrong = cases("BA", "BA", [CHANGED_A]), cases("BB", "BB", [CHANGED_A])
    found = contrast([run(right, 0), run(right, 1)], [run(wrong, 0)], explained())
    assert (found.value, found.runs) == (1.0, 1)
    assert contrast([run(right, 1)], [run(wrong, 0)], explained()).value != found.value


def test_the_interval_of_a_difference_that_is_the_same_everywhere_has_no_width():
    right, wrong = cases("BA BA", "BA BA", [CHANGED_A] * 2), cases("BB BB", "BB BB", [CHANGED_A] * 2)
    found = contrast([run(right, 0), run(right, 1)], [run(wrong, 0), run(wrong, 1)], explained())
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_an_average_forgets_by_steps_not_by_values():
    """Weight 1/2: two steps after a 1, a 0 leaves (1/4 · 1 + 0) / (1/4 + 1) = 0.2."""
    assert time_weighted([0, 2], [1.0, 0.0], 0.5) == pytest.approx([1.0, 0.2])
    assert time_weighted([0, 1], [1.0, 0.0], 0.5) == pytest.approx([1.0, 1 / 3])


def test_the_gap_is_over_the_drift_and_left_out_where_there_is_none():
    """No drift at step 0; at step 1 the averages are 0.5 of each: with 0.99 about, so compare by their own numbers."""
    rows = [
        {"step": 0, "explanation_self": 0.5, "explanation_orig": 0.5, "behavior_em": 1.0},
        {"step": 1, "explanation_self": 0.7, "explanation_orig": 0.5, "behavior_em": 0.5},
    ]
    found = smoothed(rows)
    steps, ratio = found["gap_over_drift"]
    assert steps == [1]
    assert ratio[0] == pytest.approx(0.2 / 0.5)  # the weights of both averages cancel: (0.2 w) / (0.5 w)
    assert "behavior_cued" not in found
