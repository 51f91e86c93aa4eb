"""Claims: verdicts by hand, what a file must say, and the commit in which each claim was frozen."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import pytest

from introspect_ray.errors import UserError
from introspect_ray.experiments.catalogue import EXPERIMENTS
from introspect_ray.experiments.claims import (
    DOES_NOT,
    HOLDS,
    NOT_RUN,
    Claim,
    judge,
    latest_commits,
    load_claims,
)


class Measured(NamedTuple):
    value: float
    low: float
    high: float
    runs: int = 2
    method: str = "by hand"


CLAIM = Claim("a", "fig2", "Self > Orig", "gap", "above", 0.0, (2, 3), (0,))
RAN = [(2, 0), (3, 0), (4, 1)]


@pytest.mark.parametrize(
    ("comparison", "threshold", "measured", "word"),
    [
        ("above", 0.0, Measured(0.10, 0.01, 0.19), HOLDS),
        ("above", 0.0, Measured(0.10, -0.01, 0.21), DOES_NOT),  # the value is, the interval is not
        ("below", 0.0, Measured(-0.10, -0.19, -0.01), HOLDS),
        ("below", 0.0, Measured(-0.10, -0.21, 0.01), DOES_NOT),
        ("at least", 0.1, Measured(0.10, -0.50, 0.70), HOLDS),
        ("at least", 0.1, Measured(0.09, 0.08, 0.10), DOES_NOT),
        ("at most", 0.1, Measured(0.10, -0.50, 0.70), HOLDS),
        ("at most", 0.1, Measured(0.11, 0.08, 0.14), DOES_NOT),
        ("equivalent", 0.1, Measured(0.02, -0.09, 0.09), HOLDS),
        ("equivalent", 0.1, Measured(0.02, -0.11, 0.09), DOES_NOT),
        ("equivalent", 0.1, Measured(0.0, -math.inf, math.inf), DOES_NOT),  # one run: nothing is known
        ("above", 0.0, Measured(math.nan, math.nan, math.nan), NOT_RUN),
    ],
)
def test_a_claim_is_judged_by_its_interval(comparison, threshold, measured, word):
    claim = replace(CLAIM, comparison=comparison, threshold=threshold)
    assert judge(claim, measured, RAN).word == word


def test_a_claim_without_all_of_its_runs_is_not_run():
    measured = Measured(0.5, 0.4, 0.6)
    assert judge(CLAIM, measured, RAN).word == HOLDS
    missing = judge(CLAIM, measured, [(2, 0), (3, 1)])
    assert missing.word == NOT_RUN and "world 3, seed 0" in missing.why
    assert judge(CLAIM, measured, None).word == HOLDS  # real models: worlds are not compared
    assert judge(CLAIM, None, RAN).word == NOT_RUN
    fewer = judge(CLAIM, measured._replace(runs=1), RAN)  # an alarm stopped the other one
    assert fewer.word == NOT_RUN and "1 of its 2 runs" in fewer.why


def test_every_claim_of_the_package_is_about_an_experiment_and_has_an_id_of_its_own():
    claims = load_claims()
    assert claims and {claim.experiment for claim in claims} <= EXPERIMENTS.keys()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- {id: a, experiment: fig2}", "claim 'a'"),
        ("- {id: a, experiment: b, text: c, metric: d, comparison: near, threshold: 0, worlds: [0], seeds: [0]}",
         "near"),
        (2 * "- {id: a, experiment: b, text: c, metric: d, comparison: above, threshold: 0, worlds: [0], seeds: [0]}\n",
         "'a' is there twice"),
    ],
)  # fmt: skip
def test_a_wrong_claim_is_refused_by_name(tmp_path, text, says):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        load_claims(tmp_path / "claims.yaml")


def test_a_claim_is_as_old_as_its_latest_line():
    """Lines of claim a are of commits 1 and 2, the later one counts; claim b has a line that is not committed."""
    one, two, none = "1" * 40, "2" * 40, "0" * 40
    blame = (
        f"{one} 1 1 2\ncommitter-time 1000000000\n\t- id: a\n{two} 2 2 1\ncommitter-time 1100000000\n\t  threshold: 0\n"
        f"{one} 3 3\n\t- id: b\n{none} 4 4\ncommitter-time 900000000\n\t  threshold: 1\n"
    )
    assert latest_commits(blame) == {"a": "2222222 2004-11-09", "b": "not committed"}
