"""Bad input: one clear line, exit code 2, before Ray or anything heavy, and nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from introspect_ray.cli import parse
from introspect_ray.commands import main
from introspect_ray.errors import UserError

REPO = Path(__file__).parents[3]
CASE = {
    "id": "c1",
    "messages": [{"role": "user", "content": "sofa color?\nHint: C"}],
    "ablated_messages": [{"role": "user", "content": "sofa color?"}],
    "labels": ["A", "B", "C", "D"],
}
FREE = {
    "response": {"kind": "free", "judge": "keyword", "max_tokens": 8},
    "labels": ["refuse", "comply"],
    "templates": {"labels": {"refuse": "A", "comply": "B"}},  # the organism does not know the judge's words
}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray, or joining one that another test holds, fails the test."""
    import ray

    def started(*args, **kwargs):
        pytest.fail("Ray was started before the input was checked")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", started)


def refused(*args: str) -> str:
    """The error a train job ends with, in this process."""
    from introspect_ray.runs.jobs import train_job

    with pytest.raises(UserError) as caught:
        train_job(parse("train", [*args]))
    return str(caught.value)


def test_few_shot_prompts_are_for_the_evaluation(tmp_path):
    said = refused(f"output_dir={tmp_path / 'out'}", "task.shots=2")
    assert said.startswith("task.shots=2 ") and "introspect-ray evaluate" in said and not (tmp_path / "out").exists()


def test_calibration_where_all_is_free_text(tmp_path):
    file = tmp_path / "free.jsonl"
    rows = [
        {**CASE, **FREE, "id": f"c{i}", "ablated_messages": [{"role": "user", "content": f"{i}?"}]} for i in range(8)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(
        f"output_dir={tmp_path / 'out'}", "task.name=jsonl", f"task.path={file}", "task.calibration=contextual"
    )
    assert "task.calibration=contextual is for closed labels, and all 6 training cases have free text" in said


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("kl_wieght=1", "did you mean 'kl_weight'"),
        ("kl_weight=-1", "kl_weight"),
        ("kl_weight", "key=value"),
        ("eval.against=organism", "write it as a list ([a, b])"),
        ("task.label_names=A:B", "write it as a mapping ({a: b}, with a space after each colon)"),
        ("task.label_names={yes: the river}", "put it in quotation marks"),
        ("task.name=hint_mlu", "did you mean 'hint_mmlu'"),
        ("task.path=/nowhere.jsonl", "/nowhere.jsonl"),
        ("policy=/nowhere", "/nowhere"),
        ("train.num_workers=64", "64"),
        ("rollout.num_actors=64", "64"),
        ("supervision.agreement=1.5", "supervision.agreement"),
        ("task.test_cases=1000000", "1000000"),
        ("task.path=mine.jsonl", "set task.name=jsonl"),
        ("task.label_names={A: B}", "labels 'A' and 'B' alike"),
    ],
)
def test_bad_keys_and_values(tmp_path, override, says):
    out = tmp_path / "out"
    extra = ["task.name=jsonl"] if override.startswith("task.path=/") else []
    assert says in refused(f"output_dir={out}", *extra, "batch_size=64", override)
    assert not out.exists()


def test_a_rank_that_the_engine_cannot_serve(tmp_path):
    said = refused(f"output_dir={tmp_path / 'out'}", "method=lora", "lora_rank=1024")
    assert "lora_rank=1024" in said and "512" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": ["A"]}, "line 2"),
        ({"labels": ["A", "color blau"]}, "line 2: label 'color blau' is unknown"),
        ({"extra": 1}, "line 2"),
        ({"ablated_messages": [{"role": "user", "content": "gedu color?\nHint: C"}]}, "line 2"),
        ({"labels": ["A", "A color"]}, "line 2: labels 'A' and 'A color' cannot be told apart"),
        ({"templates": {"labels": {"A": "B"}}}, "line 2: the templates write labels 'A' and 'B' alike"),
        ({"templates": {"changed": "The answer would change."}}, "line 2: the template changed"),
        (
            {"templates": {"changed": "Novel {label}."}},
            "tokenizer does not keep the explanation 'Novel A.'",
        ),
        (
            {"messages": [{"role": "user", "content": "unbekannt"}]},
            "line 2: case 'c2': all tokens of its prompt",
        ),
        (
            {**FREE, "labels": ["A", "B"], "templates": {}},
            "line 2: case 'c2' has the labels ['A', 'B'], but the judge's verdicts are",
        ),
        ({**FREE, "response": {**FREE["response"], "judge": "llm"}}, "set judge.kind=llm"),
        (
            {**FREE, "response": {"kind": "free", "max_tokens": 600}},
            "line 2: the policy's context=512, but case 'c2' needs 6",
        ),
        ({"group": "\ud83d"}, "line 2: \\ud83d is half of a character"),
        ("{not json", "line 2"),
    ],
)
def test_malformed_cases(tmp_path, change, says):
    other = json.loads(json.dumps(CASE).replace("sofa", "gedu").replace("c1", "c2"))
    second = change if isinstance(change, str) else json.dumps({**other, **change})
    (tmp_path / "cases.jsonl").write_text(json.dumps(CASE) + "\n" + second + "\n")
    assert says in refused(f"output_dir={tmp_path / 'out'}", "task.name=jsonl", f"task.path={tmp_path / 'cases.jsonl'}")
    assert not (tmp_path / "out").exists()


def test_a_policy_without_a_tokenizer(tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(REPO / "introspect_ray" / "organism" / "policy", folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in refused(f"output_dir={tmp_path / 'out'}", f"policy={folder}")


def test_an_existing_output_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "output_dir" in refused(f"output_dir={tmp_path}")
    assert "output_dir" in refused(f"output_dir={tmp_path}", "--overwrite")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_exit_code_and_one_line():
    done = subprocess.run(
        [sys.executable, "jobs/train.py", "kl_weigth=1"], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "jobs/sweep_lambda.py", "--dry-run", f"output_dir={tmp_path / 'out'}"],
        cwd=REPO, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "trials: 8" in done.stdout and "budget: 2 logical CPUs, 0 GPUs" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("job", ["quickstart", "sweep lambda", "sweep lag=[0,1]", "evaluate"])
def test_every_job_takes_its_output_folder_from_the_config_file(tmp_path, capsys, job):
    """Each has a default folder of its own, which may not beat the file."""
    (tmp_path / "mine.yaml").write_text(f"output_dir: {tmp_path / 'mine'}\nseed: 7\n")
    main([*job.split(), "--dry-run", "--config", str(tmp_path / "mine.yaml")])
    plan = yaml.safe_load(capsys.readouterr().out.split("\n---\n")[0])
    trial = Path(plan["output_dir"]).relative_to(tmp_path / "mine")
    assert plan["seed"] == 7 and trial.parts[:1] == (() if job == "evaluate" else ("trials",))
