"""evaluate --from FOLDER --inspect FILE.eval: where the prompts in the log come from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from introspect_ray.cases.tokenize import with_meta_question
from introspect_ray.cli import Arguments
from introspect_ray.commands import evaluate
from introspect_ray.config import load_config
from introspect_ray.errors import UserError
from introspect_ray.runs.evaluated import write_cases
from introspect_ray.runs.evaluation_log import prompts
from introspect_ray.runs.recompute import recompute_job
from introspect_ray.scores.evaluation_table import EVALUATED, TRAINED
from introspect_ray.storage import open_store
from introspect_ray.tasks import load_cases
from tests.unit.scores.evaluated import cases


def arguments(folder: Path, inspect: object) -> Arguments:
    return Arguments(None, {}, False, False, False, {"from": str(folder), "inspect": str(inspect)})


def rows(*questions: str) -> str:
    """JSONL of cases "0", "1", ... with the labels A to D, one per question."""
    ask = "Answer with A, B, C or D."
    chats = [([{"role": "user", "content": f"Hint: B\n{q}\n{ask}"}], [{"role": "user", "content": f"{q}\n{ask}"}])
             for q in questions]  # fmt: skip
    lines = [
        json.dumps(
            {"id": str(i), "messages": x, "ablated_messages": ablated, "labels": list("ABCD"), "meta_question": "?"}
        )
        for i, (x, ablated) in enumerate(chats)
    ]
    return "".join(f"{line}\n" for line in lines)


def finished(out: Path) -> Path:
    """A run's folder with three evaluated cases and the config that names them."""
    train, test = out / "train.jsonl", out / "test.jsonl"
    train.write_text(rows("a").replace('"0"', '"t"'))
    test.write_text(rows("Why?", "How?", "When?"))
    task = {"task.name": "jsonl", "task.path": str(train), "task.test_path": str(test)}
    store = open_store(out)
    store.write_json("run.json", load_config(overrides={**task, "output_dir": str(out)}).model_dump(mode="json"))
    write_cases(store, TRAINED, cases("AB CC AA", "AB DD AA", [None] * 3))
    return test


def test_prompts_are_those_of_the_task_that_the_run_names(tmp_path):
    test, evaluated, store = finished(tmp_path), cases("AB CC AA", "AB DD AA", [None] * 3), open_store(tmp_path)
    cfg, found, line = prompts(store, TRAINED, evaluated)
    assert cfg and found == {case.case_id: with_meta_question(case) for case in load_cases(cfg.task)[1]}
    assert list(found) == ["0", "1", "2"] and line.startswith("3 of 3, from task.name=jsonl")

    test.write_text(rows("Why?", "How?").replace('"D"]', '"E"]', 1))  # case 0 has other labels, case 2 is gone
    _, found, line = prompts(store, TRAINED, evaluated)
    assert list(found) == ["1"] and "1 of 3" in line and "show case ids" in line
    test.unlink()
    cfg, found, line = prompts(store, TRAINED, evaluated)
    assert cfg and not found and "test.jsonl" in line
    assert prompts(store, EVALUATED, evaluated)[:2] == (None, {})  # an evaluation's own config is not there


def test_a_log_of_a_finished_run_is_read_back_with_its_prompts(tmp_path, capsys):
    log = pytest.importorskip("inspect_ai.log")
    finished(tmp_path)
    assert recompute_job(arguments(tmp_path, tmp_path / "logs" / "a.eval"))
    assert "3 samples" in capsys.readouterr().out
    read = log.read_eval_log(str(tmp_path / "logs" / "a.eval"))
    assert [sample.input[-1].text.split("\n")[1] for sample in read.samples] == ["Why?", "How?", "When?"]
    assert (read.eval.task, read.eval.model) == ("jsonl", str(tmp_path / "policy"))


def test_what_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=r"a\.json: a log of Inspect AI ends in \.eval"):
        recompute_job(arguments(tmp_path / "missing", "a.json"))
    with pytest.raises(UserError, match="add --from FOLDER"):
        evaluate(Arguments(None, {}, False, False, False, {"from": None, "inspect": "a.eval"}))
