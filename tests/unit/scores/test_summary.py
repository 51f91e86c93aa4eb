"""summary.json holds the documented keys, and every fault in it is named."""

import copy
import json
from dataclasses import replace

import pytest

from introspect_ray.config import RunConfig
from introspect_ray.records import BehaviorPair
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.evaluation import evaluate
from introspect_ray.scores.summary import check_summary, make_summary

PAIR = BehaviorPair("q", "A", "B", (0.0, 0.0), (0.0, 0.0), False, False, 0)
CASES = EvaluatedCases(
    ["q"],
    ["sentence hint"],
    ["{}"],
    ["AB"],
    {"m0": [PAIR], "policy": [PAIR], "second": [PAIR]},
    ["said"],
    [PAIR.explanation],
)
LABELS = {"requested_agreement": None, "realised_at_labelling": None, "realised_at_consumption": 0.5, "split_pairs": 0}
TIMING = dict.fromkeys(("setup", "rollout", "relabel", "train", "sync", "eval", "total"), 1.5)


def made(cfg: RunConfig | None = None, cases: EvaluatedCases = CASES, **how) -> dict:
    counts = {"train": 9, "test": 4, "questions": 3}
    return make_summary(cfg or RunConfig(), evaluate(cases), cases=counts, labels=LABELS, timing=TIMING, **how)


def test_summary_holds_the_documented_keys_and_strict_json():
    out = made()
    assert list(out) == [
        "task", "policy", "method", "kl_weight", "seed", "steps", "lag", "supervision", "calibration",
        "judges", "loss_normalisation", "cases", "explanation", "behavior", "disagreement", "gap", "groups", "sources",
        "dev", "labels", "timing_s",
    ]  # fmt: skip
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["supervision"] == {"rule": "fixed", "agreement": None, "mixing_ratio": None}
    assert (
        out["calibration"] is out["judges"] is None and out["loss_normalisation"] == "token" and out["sources"] is None
    )
    assert list(out["groups"]) == ["sentence hint"]


def test_summary_says_how_labels_were_read_and_what_was_averaged():
    read = {"kind": "contextual", "identity": "3fa9"}
    out = made(RunConfig(loss_normalisation="sequence"), calibration=read)
    assert out["calibration"] == read and out["loss_normalisation"] == "sequence"
    with pytest.raises(ValueError, match=r"calibration\.kind is 'all'"):
        made(calibration={"kind": "all", "identity": "3fa9"})


def test_summary_holds_the_dev_split():
    other = replace(PAIR, case_id="r")
    both = EvaluatedCases(
        ["q", "r"], [""] * 2, ["{}"] * 2, ["AB"] * 2, {"m0": [PAIR, other], "policy": [PAIR, other]}, ["said"] * 2,
        [PAIR.explanation] * 2, splits=["test", "dev"],
    )  # fmt: skip
    assert made(cases=both)["dev"].keys() == {"cases", "questions", "gap"} and made()["dev"] is None


def test_summary_of_a_mixed_run_holds_its_sources():
    assert list(made(cases=replace(CASES, from_second=[True]))["sources"]) == [
        "self", "m0", "second", "mixture", "behavior",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "section,expected",
    [
        ({"rule": "online", "agreement": 0.7}, {"rule": "online", "agreement": 0.7, "mixing_ratio": None}),
        (
            {"rule": "mixed", "mixing_ratio": 0.0, "second_policy": "x"},
            {"rule": "mixed", "agreement": None, "mixing_ratio": 0.0},
        ),
    ],
)
def test_summary_shows_what_the_rule_uses(section, expected):
    assert made(RunConfig(supervision=section))["supervision"] == expected


@pytest.mark.parametrize(
    "path,value,message",
    [
        (("behavior", "em"), None, "behavior.em is None"),
        (("behavior", "em"), float("nan"), "behavior.em is nan"),
        (("behavior", "em"), 73.0, "behavior.em is 73.0: Input should be less than or equal to 1"),  # percent
        (("labels", "realised_at_labelling"), float("nan"), "labels.realised_at_labelling is nan"),
        (("explanation", "self", "em_ci"), [0.6, 0.4], "em_ci is [0.6, 0.4]: the lower bound is above the upper"),
        (("explanation", "self", "em_ci"), [0.6], "explanation.self.em_ci is [0.6]"),
        (("gap", "em", "value"), 10.8, "gap.em.value is 10.8: Input should be less than or equal to 1"),  # points
        (("gap", "content", "ci"), [0.1, -0.1], "gap.content.ci is [0.1, -0.1]: the lower bound is above the upper"),
        (("groups", "sentence hint", "cases"), 0, "groups.sentence hint.cases is 0"),
        (("cases", "test"), 4.0, "cases.test is 4.0: Input should be a valid integer"),
        (("seed",), True, "seed is True"),
        (("timing_s", "total"), -1.0, "timing_s.total is -1.0"),
        (("kl_weight",), float("inf"), "kl_weight is inf"),
        (("explanation", "third"), {}, "explanation.third is not a known key"),
        (("behavior",), 0.5, "behavior is 0.5: Input should be a valid dictionary"),
    ],
)
def test_check_summary_names_the_fault(path, value, message):
    data = copy.deepcopy(made())
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ValueError) as error:
        check_summary(data)
    assert message in str(error.value)


def test_check_summary_names_every_fault_in_one_line():
    data = copy.deepcopy(made())
    del data["seed"], data["labels"]["split_pairs"]
    data["lag"] = -1
    with pytest.raises(ValueError) as error:
        check_summary(data)
    assert str(error.value) == (
        "summary.json is not as documented: labels.split_pairs is missing; "
        "lag is -1: Input should be greater than or equal to 0; seed is missing"
    )
