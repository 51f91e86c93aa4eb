"""The shares that a step reports: over cases whose current answer a forward shows, and read with the calibration."""

from dataclasses import replace

import pytest
from learner_helpers import LETTERS, make_cases, make_config, make_labels, make_pairs, save_model, with_free_text

from introspect_ray.labels.calibration import Calibration
from introspect_ray.records import Explanation
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

CASES = make_cases(8)
TOKENIZED = {case.case_id: case for case in CASES}
LABELS = make_labels(CASES)
M0 = make_pairs(CASES)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    root = tmp_path_factory.mktemp("policy")
    path = save_model(root / "model")
    return path, build_reference(path, CASES, None, str(root / "cache"))


def test_free_text_counts_only_where_no_answer_is_needed(policy, tmp_path):
    """Of a batch of letters and free text, the shares that need the current answer are those of the letters alone."""
    letters, free = CASES[:4], [with_free_text(case) for case in CASES[4:]]
    both = {case.case_id: case for case in (*letters, *free)}
    m0 = make_pairs([*letters, *free])
    path = build_reference(policy[0], list(both.values()), m0, str(tmp_path))

    def step(cases):
        learner = Learner(make_config(), policy[0], path, both)
        return learner.step(make_labels(cases), m0), learner.last_logprobs

    mixed, logprobs = step([*letters, *free])
    alone, _ = step(letters)
    without, _ = step(free)
    needing = ("explanation_self", "behavior_em", "realised_at_consumption")
    assert [mixed[name] for name in needing] == [alone[name] for name in needing]
    assert [without[name] for name in needing] == [None, None, None]
    assert mixed["explanation_orig"] == (alone["explanation_orig"] + without["explanation_orig"]) / 2
    assert logprobs["case-4"] == ((), ()) and len(logprobs["case-3"][0]) == 4


def test_calibrated_answers_are_those_of_the_calibration(policy):
    """Offsets of 1,000 nats for all labels but C on x and D on x∖C: every answer is C and D, whatever the policy says.

    The raw logprobs stay as they are.
    """
    offsets = {"cued": (1e3, 1e3, 0.0, 1e3), "ablated": (1e3, 1e3, 1e3, 0.0)}
    calibrated = Learner(make_config(), *policy, TOKENIZED, calibration=Calibration({LETTERS: offsets}))
    m0 = {case_id: replace(pair, cued="C", ablated="D") for case_id, pair in M0.items()}
    truth = Explanation(True, "D")
    labels = [replace(x, explanation=truth if i < 3 else Explanation(False, "D")) for i, x in enumerate(LABELS)]
    plain = Learner(make_config(), *policy, TOKENIZED)
    result, raw = calibrated.step(labels, m0), plain.step(labels, m0)
    assert result["behavior_em"] == 1.0 and result["realised_at_consumption"] == 3 / 8
    assert result["explanation_self"] == result["explanation_orig"]
    assert raw["behavior_em"] < 1 and calibrated.last_logprobs == plain.last_logprobs
