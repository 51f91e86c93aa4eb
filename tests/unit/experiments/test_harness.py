"""Table 2: the harness's score of the bundled kind of task, and how scores are compared. By hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from introspect_ray.config import RolloutConfig, TaskConfig
from introspect_ray.engines.transformers_engine import TransformersEngine
from introspect_ray.errors import UserError
from introspect_ray.experiments import harness
from introspect_ray.experiments.harness import compared, multiple_choice_task, paired_interval, score_policies
from introspect_ray.policy import load_tokenizer, local_policy
from introspect_ray.records import BehaviorPair, Case
from introspect_ray.tasks import load_cases


def organism_cases(count: int) -> list[Case]:
    """Held-out cases of different questions."""
    cases = {case.ablated_messages[0]["content"]: case for case in load_cases(TaskConfig(name="organism"))[1]}
    return list(cases.values())[:count]


def answered(policy: str, cases: list[Case]) -> list[BehaviorPair]:
    from introspect_ray.cases.tokenize import tokenize_case

    path = local_policy(policy)
    engine = TransformersEngine(path, RolloutConfig(engine="transformers"), 64, "full", 1, 0)
    return engine.label_pairs([tokenize_case(case, load_tokenizer(path)) for case in cases])


def test_the_harness_scores_a_policy_by_its_agreement_with_m0(tmp_path: Path) -> None:
    """Accuracy of the second organism on M0's answers is the share of questions that both answer alike."""
    pytest.importorskip("lm_eval")
    cases = organism_cases(24)
    m0, second = (answered(policy, cases) for policy in ("organism", "organism:second"))
    alike = [ours.ablated == theirs.ablated for ours, theirs in zip(m0, second)]
    assert 0 < sum(alike) < 24
    task = multiple_choice_task("organism", cases, m0, "organism", tmp_path)
    base, other = score_policies({"M0": "organism", "second": "organism:second"}, [task])
    assert (base.value, base.difference, base.items) == (1.0, None, 24)
    assert (other.policy, other.task, other.metric) == ("second", "organism", "acc")
    share = sum(alike) / 24
    assert other.value == pytest.approx(share) and other.difference == pytest.approx(share - 1)
    half = 1.96 * math.sqrt(share * (1 - share) / 23)  # differences are 0 or -1, as often as the answers part
    assert (other.low, other.high) == pytest.approx((share - 1 - half, share - 1 + half))


def test_each_question_is_asked_once_with_m0s_answer_as_the_key(tmp_path: Path) -> None:
    (case,) = organism_cases(1)
    again = replace(case, case_id="again")  # another hint on the same question
    pairs = [BehaviorPair(one.case_id, "A", "C", (), (), False, False, 0) for one in (case, again)]
    task = multiple_choice_task("tiny", [case, again], pairs, "organism", tmp_path)
    (item,) = map(json.loads, Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines())
    question = f"<|user|>{case.ablated_messages[0]['content']}<|assistant|>"
    assert item == {"question": question, "choices": ["A", "B", "C", "D"], "answer": 2}


def test_scores_are_compared_item_by_item() -> None:
    """Differences 0, -1, 0, -1: mean -1/2, variance 1/3, standard error sqrt(1/12)."""

    def results(values: list[float]) -> dict:
        samples = [{"doc_id": i, "filter": "none", "acc": value} for i, value in enumerate(values)]
        mean = sum(values) / len(values)
        metrics = {"alias": "t", "acc,none": mean, "acc_stderr,none": 0.25}
        return {
            "results": {"t": metrics, "group": {"acc,none": mean, "acc_stderr,none": "N/A"}},
            "samples": {"t": samples},
        }

    task, group = compared("reg", results([1, 0, 0, 0]), results([1, 1, 0, 1]))
    assert task[:7] == pytest.approx(("reg", "t", "acc", 0.25, 0.25, -0.5, -0.5 - 1.96 * math.sqrt(1 / 12)))
    assert task.high == pytest.approx(-0.5 + 1.96 * math.sqrt(1 / 12)) and task.items == 4
    assert (group.error, group.difference, group.low, group.items) == (None, -0.5, None, 0)
    assert paired_interval({0: 1.0, 1: 0.0}, {0: 1.0, 2: 0.0}) == (None, None)  # other items


def test_a_missing_harness_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"\.\[harness\]"):
        harness.check_harness()
