"""Finished runs as the controls take them: who is a sibling, which cases are scored, how a run is read anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from introspect_ray.commands import run
from introspect_ray.config import RunConfig, override
from introspect_ray.errors import UserError
from introspect_ray.experiments.controls import controls_of
from introspect_ray.experiments.controls_cases import Subject, strata
from introspect_ray.experiments.controls_labels import half, refitted
from introspect_ray.experiments.controls_load import load_subjects
from introspect_ray.records import BehaviorPair, Explanation
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.evaluation_table import TRAINED, to_parquet, to_table

FLAT = (-1.0, -1.0)


def pair(case: str, cued: str, ablated: str, cued_logprobs=FLAT, ablated_logprobs=FLAT) -> BehaviorPair:
    return BehaviorPair(case, cued, ablated, cued_logprobs, ablated_logprobs, False, False, 0)


def evaluated(own: str, m0: str, said: str, **fields) -> EvaluatedCases:
    """own, m0: "AB BB" are the answers on x and x∖C per case. said: the same for what the run says of itself."""
    ids = [f"case-{row}" for row in range(len(own.split()))]
    parsed = [Explanation(a != b, b) for a, b in said.split()]
    pairs = {
        name: [pair(case, *answers) for case, answers in zip(ids, text.split(), strict=True)]
        for name, text in {"m0": m0, "policy": own, "reference": fields.pop("reference", "")}.items()
        if text
    }
    plain = {
        "case_ids": ids,
        "groups": [""] * len(ids),
        "metadata": [""] * len(ids),
        "labels": [("A", "B")] * len(ids),
        "pairs": pairs,
        "said": [str(one) for one in parsed],
        "parsed": parsed,
    }
    return EvaluatedCases(**plain | fields)


def subject(cases: EvaluatedCases, **fields) -> Subject:
    about = {"name": "a", "training": "t", "seed": 0, "policy": "p", "reference": None, "calibrated": False, "cues": {}}
    return Subject(held_out=cases, **about | fields)


def numbers(rows, control: str, part: str = "em") -> dict[str, float]:
    return {row.quantity: row.estimate.value for row in rows if (row.control, row.part) == (control, part)}


def test_only_the_test_split_is_scored():
    """Both cases are right of the run; the dev one is wrong of M0, the test one is not."""
    cases = evaluated("AB AB", "AA AB", "AB AB", splits=["dev", "test"])
    assert numbers(controls_of([subject(cases)]).rows, "gap")["self - orig"] == 0


def test_parts_by_hand():
    """The run says "changed to B" of x = A, x∖C = B, where M0 answers B to both: the content is right of both."""
    rows = controls_of([subject(evaluated("AB AB", "BB BB", "AB AB"))]).rows
    gaps = {part: numbers(rows, "gap", part)["self - orig"] for part in ("em", "content", "changed_accuracy")}
    assert gaps == {"em": 1, "content": 0, "changed_accuracy": 1}


def test_runs_of_other_cases_are_refused():
    other = evaluated("AB AB AB", "AB AB AB", "AB AB AB")
    with pytest.raises(
        UserError, match="a and b were evaluated on other cases: 2 and 3, the first difference is case 2"
    ):
        controls_of([subject(evaluated("AB AB", "AB AB", "AB AB")), subject(other, name="b", seed=1)])
    split = evaluated("AB AB", "AB AB", "AB AB", splits=["dev", "test"])
    with pytest.raises(UserError, match="but 2 and 1 of them are the test split"):
        controls_of([subject(evaluated("AB AB", "AB AB", "AB AB")), subject(split, name="b", seed=1)])


def test_a_run_given_twice_is_refused():
    cases = evaluated("AB", "AB", "AB")
    with pytest.raises(UserError, match="one training with one seed"):
        controls_of([subject(cases), subject(cases, name="b")])


def test_the_same_distance_names_both_behaviour_ems():
    """Of four cases a keeps 3 as M0, b 0, c 2: c is nearest to a."""
    m0 = "AA AA AA AA"
    runs = {"a": "AA AA AA BB", "b": "BB BB BB BB", "c": "AA AA BB BB"}
    rows = controls_of([subject(evaluated(own, m0, own), name=name, training=name) for name, own in runs.items()]).rows
    row = next(
        row for row in rows if (row.training, row.control, row.quantity) == ("a", "same distance", "A→B, B nearest")
    )
    assert row.estimate.value == 0.75
    assert row.note == "Behaviour EM to M0: A a 75.0%, B c 50.0%"


def test_cues_are_strata_only_where_many_cases_share_one():
    cases = evaluated("AB " * 40, "AB " * 40, "AB " * 40)
    two = {case: f"Hint: {'AB'[row % 2]}" for row, case in enumerate(cases.case_ids)}
    assert strata(subject(cases, cues=two)).tolist() == [0, 1] * 20
    assert not strata(subject(cases, cues={case: case for case in cases.case_ids})).any()


def test_refitted_answers_by_hand():
    """20 questions of each half. Half 0: x (-1, -2.5), x∖C (-2, -1.5). Half 1: x (-1, -3), x∖C (-2, -1).
    Half 0 less half 1's means: x (0, 0.5), so B; x∖C (0, -0.5), so A. Half 1 less half 0's: x (0, -0.5), A; x∖C
    (0, 0.5), B. Raw answers were A and B everywhere; offsets fitted on the same half would give ties, so A and A."""
    names = [[q for q in map(str, range(200)) if half(q) == side][:20] for side in (0, 1)]
    questions = [*names[0], *names[1]]
    cases = evaluated("AB " * 40, "AB " * 40, "AB " * 40, questions=questions)
    raw = [((-1.0, -2.5), (-2.0, -1.5))] * 20 + [((-1.0, -3.0), (-2.0, -1.0))] * 20
    own = [pair(case, "A", "B", *logprobs) for case, logprobs in zip(cases.case_ids, raw, strict=True)]
    cases = evaluated("AB " * 40, "AB " * 40, "AB " * 40, questions=questions, pairs={**cases.pairs, "policy": own})
    refit = refitted(subject(cases, calibrated=True))
    answers = [(one.cued, one.ablated) for one in refit.cases.pairs["policy"]]
    assert answers == [("B", "A")] * 20 + [("A", "B")] * 20
    assert refit.cases.pairs["m0"] == cases.pairs["m0"]
    same = {**cases.pairs, "m0": own}
    both = refitted(
        subject(evaluated("AB " * 40, "AB " * 40, "AB " * 40, questions=questions, pairs=same)), m0_too=True
    )
    assert both.cases.pairs["m0"] == both.cases.pairs["policy"] == refit.cases.pairs["policy"]
    rows = controls_of([subject(cases, calibrated=True)]).rows  # all say "changed to B": right of half 1 alone
    assert numbers(rows, "refitted offsets")["self"] == 0.5 and numbers(rows, "gap")["self"] == 1


def test_too_few_cases_to_refit_are_said():
    controls = controls_of([subject(evaluated("AB", "AB", "AB"), calibrated=True)])
    assert not numbers(controls.rows, "refitted offsets")
    assert any("refit" in line for line in controls.missing)


def written(folder: Path, cases: EvaluatedCases, **overrides) -> Path:
    """A run's folder as far as the controls read it."""
    (folder / "evaluation").mkdir(parents=True)
    (folder / TRAINED).write_bytes(to_parquet(to_table(cases)))
    cfg = override(RunConfig(), {"output_dir": str(folder), **overrides})
    (folder / "run.json").write_text(json.dumps(cfg.model_dump(mode="json")))
    return folder


def test_the_command_on_a_sweep(tmp_path, capsys):
    """Two trainings of two seeds; each run says what it does, M0 does otherwise on one of two cases."""
    for weight in (0, 1):
        for seed, own in enumerate(("AB BB", "AA BB")):
            cases = evaluated(own, "BB BB", own)
            written(tmp_path / f"sweep/trials/kl_weight={weight},seed={seed}", cases, kl_weight=weight, seed=seed)
    run("controls", [str(tmp_path / "sweep"), "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out/controls.json").read_text())
    rows = {(row["training"], row["control"], row["quantity"], row["part"]): row["value"] for row in found["rows"]}
    assert {row["training"] for row in found["rows"]} == {"kl_weight=0.0", "kl_weight=1.0"}
    assert rows["kl_weight=1.0", "gap", "self - orig", "em"] == 0.5
    assert rows["kl_weight=1.0", "siblings", "self - sibling", "em"] == 0.5
    assert rows["kl_weight=1.0", "drift swap", "own", "em"] is None  # both runs left M0 on the same case
    assert found["matrix"]["kl_weight=1.0"]["em"] == [[1, 0.5, 0.5], [0.5, 1, 0.5]]
    assert "== kl_weight=1.0: seeds 0, 1" in capsys.readouterr().out


def test_a_trials_folder_may_hold_an_equals_sign(tmp_path):
    folder = written(tmp_path / "kl_weight=1,seed=0", evaluated("AB", "AB", "AB"))
    run("controls", [str(folder), "--out", str(tmp_path)])
    assert json.loads((tmp_path / "controls.json").read_text())["runs"][0]["policy"] == str(folder / "policy")


def test_second_generation_is_found_by_its_reference_policy(tmp_path):
    """M_reg does AB AB and says so. Its pupils, of two seeds each with a teacher of its own, say so of one case."""
    folders = []
    for seed in (0, 1):
        teacher = written(tmp_path / f"reg{seed}", evaluated("AB AB", "AA AA", "AB AB"), seed=seed)
        pupil = evaluated("AA AA", "AA AA", "AB AA", reference="AB AB")
        reference = str(teacher / "policy")
        folders += [teacher, written(tmp_path / f"second{seed}", pupil, seed=seed, reference_policy=reference)]
    subjects = load_subjects(list(map(str, folders)))
    assert len({one.training for one in subjects}) == 2  # the pupils are siblings, though their teachers differ
    found = numbers(controls_of(subjects).rows, "second generation")
    assert found["second generation explains M_reg"] == 0.5 and found["M_reg explains itself"] == 1


def test_a_folder_without_a_finished_run_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run("controls", [str(tmp_path)])
    assert exit_.value.code == 2 and "holds no finished run" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_one_line(tmp_path, capsys):
    """Before the runs are read: there is none here."""
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(SystemExit) as stopped:
        run("controls", [str(tmp_path / "none"), "--out", str(file)])
    assert stopped.value.code == 2 and "is a file" in capsys.readouterr().err
    assert file.read_text() == "kept"


def test_old_tables_get_their_questions_from_the_task(tmp_path):
    """Tables of format 1 name no questions: cases of one x∖C are one."""
    files = []
    for name, text in (("train", "3+3?"), ("test", "2+2?")):
        chats = [(f"{text}\nHint: {letter}", text) for letter in "AB"]
        lines = [
            {
                "id": f"{'case' if name == 'test' else name}-{row}",
                "messages": [{"role": "user", "content": x}],
                "ablated_messages": [{"role": "user", "content": ablated}],
                "meta_question": "?",
                "labels": ["A", "B"],
            }
            for row, (x, ablated) in enumerate(chats)
        ]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    train_file, test_file = files
    task = {"task.name": "jsonl", "task.path": str(train_file), "task.test_path": str(test_file)}
    folder = written(tmp_path / "run", evaluated("AB AB", "AB AB", "AB AB"), **task)
    (one,) = load_subjects([str(folder)])
    assert len(set(one.cases.questions)) == 1
    assert one.cues == {"case-0": "\nHint: A", "case-1": "\nHint: B"}
