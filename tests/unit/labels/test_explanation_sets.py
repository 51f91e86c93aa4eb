"""M0's explanations in the cache: what names them, and what is not used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from introspect_ray.config import RolloutConfig
from introspect_ray.labels.explanation_sets import explanation_set_key, load_explanations, save_explanations
from introspect_ray.records import Explanation, TokenizedCase
from tests.damage import flips

VALID = {Explanation(False, "A"): (20, 10, 2), Explanation(True, "A"): (20, 11, 2)}
CASE = TokenizedCase("c0", ("A", "B"), ((10,), (11,)), (1, 7, 9), (1, 9), (1, 7, 9, 4), VALID)
KEY = explanation_set_key("m0", [CASE], RolloutConfig(), 8)


def test_what_was_saved_is_read_and_damage_is_not(tmp_path):
    """Explanations may be empty, where a policy ends its turn at once."""
    said = [(20, 10), (), (20, 11, 7)]
    assert load_explanations(str(tmp_path), KEY) is None
    save_explanations(str(tmp_path), KEY, said)
    assert load_explanations(str(tmp_path), KEY) == said
    (file,) = tmp_path.rglob("*.parquet")
    for _, damaged in flips(file.read_bytes(), 40):
        file.write_bytes(damaged)
        assert load_explanations(str(tmp_path), KEY) is None


def test_a_set_under_the_name_of_another_one_is_not_used(tmp_path):
    save_explanations(str(tmp_path), KEY, [(20, 10)])
    (file,) = tmp_path.rglob("*.parquet")
    file.rename(file.with_name("other.parquet"))
    assert load_explanations(str(tmp_path), "other") is None


@pytest.mark.parametrize(
    ("policy", "case", "rollout", "most"),
    [
        ("m1", CASE, RolloutConfig(), 8),
        ("m0", replace(CASE, question=(1, 7, 9, 5)), RolloutConfig(), 8),
        ("m0", CASE, RolloutConfig(group_size=3), 8),
        ("m0", CASE, RolloutConfig(engine="transformers"), 8),
        ("m0", CASE, RolloutConfig(), 9),
        ("m0", CASE, RolloutConfig(), None),
    ],
    ids=["policy", "question", "group", "engine", "length", "decode"],
)
def test_whatever_decides_them_is_in_their_name(policy, case, rollout, most):
    assert explanation_set_key(policy, [case], rollout, most) != KEY


def test_the_valid_explanations_decide_where_one_of_them_is_walked_to():
    """Where it is generated freely they do not."""
    other = replace(CASE, explanations={**VALID, Explanation(True, "B"): (20, 12, 2)})
    walked, free = (
        [explanation_set_key("m0", [case], RolloutConfig(), most) for case in (CASE, other)] for most in (None, 8)
    )
    assert walked[0] != walked[1] and free[0] == free[1] == KEY
