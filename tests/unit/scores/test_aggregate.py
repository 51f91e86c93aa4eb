"""What runs of one point say together, by hand."""

import json

import pytest
from evaluated import cases

from introspect_ray.records import Explanation as E
from introspect_ray.scores.aggregate import aggregate
from introspect_ray.scores.evaluation import evaluate
from introspect_ray.scores.statistics import clustered, paired_t


def run(right: int):
    """Ten cases on five questions, with `right` of them right by Self and none by Orig."""
    said = [E(False, "A")] * right + [None] * (10 - right)
    return cases("AA " * 10, "BB " * 10, said, questions=list("aabbccddee"))


def test_runs_are_put_together_by_point():
    """λ = 1 with seeds 0, 1 and gaps .6, .2; λ = 0 with seed 0 and .4. Another key of the rows does not split them."""
    some = [run(6), run(4), run(2)]
    where = [{"kl_weight": 1.0, "seed": 0}, {"kl_weight": 0.0, "seed": 0}, {"kl_weight": 1.0, "seed": 1}]
    rows = [{**at, **evaluate(one)} for at, one in zip(where, some, strict=True)]
    one, zero = aggregate(rows, some, ["kl_weight"])
    assert (one["kl_weight"], one["seeds"], one["questions"]) == (1.0, [0, 1], 5)
    together = clustered([some[0], some[2]])
    assert one["gap"]["em"] == {
        "value": pytest.approx(0.4), "ci": [together.low, together.high],
        "method": "95 % bootstrap interval over 2 seeds x 5 questions",
    }  # fmt: skip
    over_seeds = paired_t([0.6, 0.2])
    assert one["paired_t"]["content"]["ci"] == pytest.approx([over_seeds.low, over_seeds.high])
    assert (zero["kl_weight"], zero["seeds"]) == (0.0, [0]) and zero["gap"]["em"]["value"] == pytest.approx(0.4)
    assert zero["paired_t"] == {"em": None, "content": None, "changed_accuracy": None}
    json.dumps([one, zero], allow_nan=False)


def test_points_of_several_keys():
    rows = [{"kl_weight": 1.0, "lr": lr, "seed": 0, **evaluate(run(2))} for lr in (1, 2)]
    assert [(row["kl_weight"], row["lr"]) for row in aggregate(rows, [run(2)] * 2, ["kl_weight", "lr"])] == [
        (1.0, 1), (1.0, 2),
    ]  # fmt: skip
