"""From a run's pairs and generated tokens to its table of evaluated cases; metrics recomputed from the table alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import decode_turn, tokenize_case
from introspect_ray.cli import Arguments
from introspect_ray.config import RunConfig, override
from introspect_ray.errors import UserError
from introspect_ray.labels.rules import mixing_draw
from introspect_ray.policy import load_tokenizer, resolve_policy
from introspect_ray.records import BehaviorPair, Case, Explanation, Templates
from introspect_ray.runs.evaluated import (
    Behavior,
    Said,
    behavior_of,
    evaluated_cases,
    question_of,
    said,
    trained_cases,
    write_cases,
)
from introspect_ray.runs.recompute import differences, recompute_job
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.evaluation import evaluate
from introspect_ray.scores.evaluation_table import EVALUATED, TRAINED
from introspect_ray.storage import open_store

ROOT = Path(__file__).parents[3]
TOKENIZER = load_tokenizer(resolve_policy("organism"))
PROMPT = ({"role": "user", "content": "metal color?"},)
WORDING = Templates("The answer would change to {label}.", "The answer would not change from {label}.")


def case(name: str, group: str = "") -> Case:
    return Case(name, PROMPT, PROMPT, "How would the answer change?", ("A", "B"), templates=WORDING, group=group)


TEST = CaseTable.build(tokenize_case(case(f"c{i}", "hint" if i else "sure"), TOKENIZER) for i in range(3))


def pairs(*answers: str) -> list[BehaviorPair]:
    return [
        BehaviorPair(f"c{i}", x, y, (-1.0, -2.0), (-1.0, -2.0), False, False, 0) for i, (x, y) in enumerate(answers)
    ]


def untrained() -> EvaluatedCases:
    m0 = Behavior(pairs("AB", "BB", "AA"))
    behaviors = {"m0": m0, "policy": m0, "second": Behavior(pairs("BA", "BA", "BA"))}
    return evaluated_cases(RunConfig(), TEST, behaviors, [Said("", None)] * 3)


def test_explanations_keep_their_text_and_are_read_by_the_templates_of_their_case():
    ids = list(TEST[0].explanations.values())
    own, other = TOKENIZER.encode("The response would change to A."), (*ids[0][:-2], 1)
    found = said([ids[2], own, other], TEST, TOKENIZER)
    assert found[0].parsed == Explanation(True, "A") and "would change to A" in found[0].text
    assert found[1].parsed is None and "response would change to A" in found[1].text  # another task's wording
    assert found[2].parsed is None and found[2].text  # the full stop is missing


def test_responses_are_told_as_text():
    x, without = TOKENIZER.encode("I think B"), TOKENIZER.encode("B.")
    free = BehaviorPair("c0", "B", "B", (), (), False, False, 0, tuple(x), tuple(without))
    closed = pairs("AB", "BB")[1]
    assert behavior_of([free, closed], TOKENIZER).texts == [(decode_turn(x, TOKENIZER), "B."), ("", "")]
    assert behavior_of([closed], TOKENIZER).texts == ()


def test_the_trained_policy_takes_the_place_of_self():
    cases = trained_cases(RunConfig(), untrained(), Behavior(pairs("BB", "BB", "AA")), [Said("x", None)] * 3)
    assert cases.truth("policy") == [Explanation(False, "B"), Explanation(False, "B"), Explanation(False, "A")]
    assert cases.truth("m0")[0] == Explanation(True, "B") and cases.from_second is None
    assert cases.groups == ["sure", "hint", "hint"] and list(cases.said) == ["x"] * 3


def test_held_out_cases_have_the_mask_that_they_would_have_in_training():
    mixed = {"rule": "mixed", "second_policy": "s", "mixing_ratio": 0.5}
    cfg = RunConfig.model_validate({"seed": 11, "supervision": mixed})
    cases = trained_cases(cfg, untrained(), Behavior(pairs("BB", "BB", "AA")), [Said("x", None)] * 3)
    assert cases.from_second == [mixing_draw(11, f"c{i}") < 0.5 for i in range(3)]


def test_cases_with_the_same_ablated_prompt_are_one_question():
    """Three cases of one question are not split. Of 13 cases on 11 questions round(.2 * 11) = 2 questions are dev."""
    assert untrained().questions == [question_of(TEST[0])] * 3 and set(untrained().splits) == {"test"}
    ten = [{"role": "user", "content": "metal " * n + "color?"} for n in range(2, 12)]
    prompts = [(PROMPT, PROMPT), ((ten[0],), PROMPT), *((PROMPT, (one,)) for one in ten), (PROMPT, (ten[0],))]
    texts = [Case(f"c{i}", x, ablated, "How?", ("A", "B"), templates=WORDING) for i, (x, ablated) in enumerate(prompts)]
    table = CaseTable.build(tokenize_case(one, TOKENIZER) for one in texts)
    behavior = Behavior(pairs(*["AB"] * len(texts)))

    def splits(**keys: object) -> EvaluatedCases:
        cfg = override(RunConfig(), {name.replace("__", "."): value for name, value in keys.items()})
        return evaluated_cases(cfg, table, {"m0": behavior, "policy": behavior}, [Said("", None)] * len(texts))

    cases = splits()
    assert cases.questions[0] == cases.questions[1] != cases.questions[2] == cases.questions[12]
    assert len(set(cases.questions)) == 11 and len(set(cases.of("dev").questions)) == 2
    assert splits(seed=1).splits == cases.splits != splits(task__seed=1).splits  # the cases', not the run's seed
    assert set(splits(eval__dev_fraction=0).splits) == {"test"}


def finished(out: Path, **also: object) -> EvaluatedCases:
    """A run's folder with the table and a summary of its metrics."""
    store = open_store(out)
    said = [Said("to B", Explanation(True, "B")), Said("?", None), Said("from A", Explanation(False, "A"))]
    cases = write_cases(
        store, TRAINED, trained_cases(RunConfig(), untrained(), Behavior(pairs("BB", "BB", "AA")), said)
    )
    store.write_json(
        "summary.json", {"task": "t", "cases": {"train": 9, "test": 3, "questions": 1}, **evaluate(cases), **also}
    )
    return cases


def recompute(*folder: str, **arguments: object) -> bool:
    return recompute_job(Arguments(None, {}, False, False, False, {"from": folder[0]}, **arguments))


def test_a_split_that_was_written_is_recomputed(tmp_path, capsys):
    """The dev cases of the table are those of the summary's block; the others are counted."""
    store = open_store(tmp_path)
    cases = replace(untrained(), splits=["test", "dev", "test"])
    store.write_json("summary.json", {"cases": {"train": 9, "test": 2, "questions": 1}, **evaluate(cases)})
    assert write_cases(store, TRAINED, cases).splits == ["test", "dev", "test"] and recompute(str(tmp_path))
    write_cases(store, TRAINED, replace(cases, splits=["test", "dev", "dev"]))
    capsys.readouterr()
    assert not recompute(str(tmp_path))
    assert "DIFFERS  cases: the table gives 1, the file has 2" in capsys.readouterr().out


def test_what_was_written_gives_the_metrics_of_the_summary(tmp_path, capsys):
    finished(tmp_path)
    assert recompute(str(tmp_path))
    shown = capsys.readouterr().out
    assert f"equal    {tmp_path / 'summary.json'}" in shown
    assert json.loads(shown[: shown.index("equal ")])["gap"]["em"]["value"] == pytest.approx(-1 / 3)


@pytest.mark.parametrize(
    "also,line",
    [
        ({"disagreement": {"fraction": 1 / 3, "self": 0.0, "orig": 1.0, "neither": 1e-17}}, "disagreement.neither: "),
        ({"cases": {"train": 9, "test": 4}}, "cases: the table gives 3, the file has 4"),
        ({"groups": {}}, "groups.sure"),
        ({"groups": {"more": {}}}, "groups.more: the table does not give it"),
        ({"sources": {}}, "sources: the table gives None"),
    ],
)
def test_a_difference_is_said_to_the_last_digit(tmp_path, capsys, also, line):
    finished(tmp_path, **also)
    assert not recompute(str(tmp_path))
    assert f"DIFFERS  {line}" in capsys.readouterr().out


def test_a_further_policys_scores_are_compared_too():
    assert not list(differences({"against": {}}, {}))
    assert list(differences({"against": {"B": {"em": 0.5}}}, {"against": {"B": {"em": 0.25}}})) == [
        "against.B.em: the table gives 0.5, the file has 0.25"
    ]


def test_what_recompute_refuses(tmp_path):
    with pytest.raises(UserError, match="holds no table of evaluated cases"):
        recompute(str(tmp_path))
    with pytest.raises(UserError, match="takes no other argument"):
        recompute_job(Arguments(None, {"steps": 3}, False, False, False, {"from": str(tmp_path)}))
    open_store(tmp_path).write_bytes(EVALUATED, b"no table")
    with pytest.raises(UserError, match=r"evaluated\.parquet: no readable Parquet file"):
        recompute(str(tmp_path))


def test_the_command_needs_neither_ray_nor_torch(tmp_path):
    finished(tmp_path)
    code = (
        "import sys; from introspect_ray.commands import main; main(['evaluate', '--from', sys.argv[1]]); "
        "assert not {'ray', 'torch', 'transformers', 'vllm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr
