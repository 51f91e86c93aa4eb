"""JudgeConfig and make_judge: what goes together, and one line for what does not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from introspect_ray.config.judges import JudgeConfig
from introspect_ray.errors import UserError
from introspect_ray.judges import Reply, check_judge, judge_labels, make_endpoint, make_judge

ENDPOINT = {"kind": "llm", "endpoint": "http://localhost:8000/v1", "model": "org/small"}
POLICY = {"kind": "llm", "policy": "org/judge"}


def comply(chats, max_tokens):
    return ["comply"] * len(chats)


def test_the_default_is_the_bundled_list_of_refusals():
    judge = make_judge(JudgeConfig())
    assert judge.labels == ("refuse", "comply") and judge.identity.startswith("keyword:refusal:")


def test_a_policy_of_the_pool_judges():
    judge = make_judge(JudgeConfig(**POLICY), comply, policy_id="c0ffee")
    assert judge.identity.startswith("llm:judge:")
    assert judge.verdicts([Reply("a", (), "yes")])[0].label == "comply"
    assert judge.identity != make_judge(JudgeConfig(**POLICY), comply, policy_id="decaf").identity
    with pytest.raises(UserError, match=r"judge\.policy=org/judge needs the run's engines"):
        make_judge(JudgeConfig(**POLICY))


def test_an_endpoint_judges():
    cfg = JudgeConfig(**ENDPOINT, request={"seed": 1}, timeout_s=5, patience_s=6, parallel=7, key_env=None)
    made = make_endpoint(cfg)
    assert (made.url, made.model, made.timeout, made.patience, made.parallel) == (
        "http://localhost:8000/v1",
        "org/small",
        5,
        6,
        7,
    )
    judge = make_judge(cfg)
    assert judge.identity.startswith("llm:org/small:")
    same = [{"timeout_s": 1}, {"parallel": 1}, {"endpoint": "http://localhost:8000/v1/"}]
    assert {make_judge(cfg.model_copy(update=change)).identity for change in same} == {judge.identity}
    other = [{"request": {}}, {"model": "org/large"}, {"endpoint": "http://localhost:9000/v1"}]
    assert judge.identity not in {make_judge(cfg.model_copy(update=change)).identity for change in other}


def test_own_labels_need_an_own_instruction(tmp_path):
    path = tmp_path / "instruction.txt"
    path.write_text("{prompt} {response}: YTA or NTA?")
    labels = ("NTA", "YTA")
    assert make_judge(JudgeConfig(**POLICY, labels=labels, instruction=str(path)), comply).labels == labels
    with pytest.raises(UserError, match="bundled instruction on refusals does not name the label 'NTA'"):
        make_judge(JudgeConfig(**POLICY, labels=labels), comply)
    with pytest.raises(UserError, match=rf"{path} does not name the label 'ESH'"):
        make_judge(JudgeConfig(**POLICY, labels=(*labels, "ESH"), instruction=str(path)), comply)
    path.write_text("YTA or NTA?")
    with pytest.raises(UserError, match=r"has no \{response\}"):
        make_judge(JudgeConfig(**POLICY, labels=labels, instruction=str(path)), comply)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"words": "/nowhere.yaml"}, "/nowhere.yaml: No such file"),
        ({**POLICY, "instruction": "/nowhere.txt"}, "instruction file /nowhere.txt: No such file.*judge.instruction"),
        ({"labels": ("a", "b")}, r"judge.labels=\['a', 'b'\], but the bundled list has \['refuse', 'comply'\]"),
        ({**POLICY, "labels": ("a",)}, "at least two labels"),
        ({**POLICY, "labels": ("Yes", "yes")}, "'yes' reads like 'Yes'"),
        ({**ENDPOINT, "endpoint": "localhost:8000"}, "is not a URL"),
    ],
)
def test_bad_input_is_one_line(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        make_judge(JudgeConfig(**fields), comply)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"endpoint": "http://h/v1", "model": "m"}, "judge.endpoint is for judge.kind=llm, not keyword"),
        ({**POLICY, "words": "w.yaml"}, "judge.words is for judge.kind=keyword, not llm"),
        ({"kind": "llm"}, "judge.policy or judge.endpoint, neither given"),
        ({**POLICY, **ENDPOINT}, "judge.policy or judge.endpoint, both given"),
        ({"kind": "llm", "endpoint": "http://h/v1"}, "judge.endpoint needs judge.model as well"),
        ({**POLICY, "model": "m"}, "judge.model needs judge.endpoint as well"),
        ({**POLICY, "request": {"seed": 1}}, "judge.request is for judge.endpoint"),
        ({"second": {**POLICY, "second": {}}}, "judge.second has a second judge of its own"),
        ({"second": {}}, "judge.second is the same judge"),
        ({"max_unjudged": 1.1}, "less than or equal to 1"),
        ({"judge": "x"}, "Extra inputs"),
    ],
)
def test_fields_that_do_not_go_together(fields, message):
    with pytest.raises(ValidationError, match=message):
        JudgeConfig(**fields)


def test_two_judges_have_the_same_labels(tmp_path):
    words = tmp_path / "words.yaml"
    words.write_text("labels: [decline, comply]\nprefixes: [nope]")
    assert judge_labels(JudgeConfig(words=str(words))) == ("decline", "comply")
    make_judge(JudgeConfig(second=POLICY))
    with pytest.raises(UserError, match=r"judge.second has the labels \['decline', 'comply'\]"):
        make_judge(JudgeConfig(second={"words": str(words)}))


def test_judges_are_checked_before_a_run(tmp_path):
    """Files and labels as make_judge does, and that each server answers; nothing listens on port 9."""
    check_judge(JudgeConfig(unjudged="refuse"))
    gone = {"kind": "llm", "endpoint": "http://127.0.0.1:9/v1", "model": "m", "patience_s": 0}
    for cfg in (JudgeConfig(**gone), JudgeConfig(second=JudgeConfig(**gone))):
        with pytest.raises(UserError, match=r"judge endpoint http://127\.0\.0\.1:9/v1 gave no answer"):
            check_judge(cfg)
    with pytest.raises(UserError, match=r"judge\.unjudged='no' is none of the judge's labels \['refuse', 'comply'\]"):
        check_judge(JudgeConfig(unjudged="no"))
    missing = JudgeConfig(**POLICY, instruction=str(tmp_path / "gone.txt"))
    with pytest.raises(UserError, match=r"instruction file .*gone\.txt: No such file"):
        check_judge(missing)


def test_the_label_of_a_reply_without_a_verdict_is_the_first_judges():
    with pytest.raises(ValidationError, match=r"judge\.second\.unjudged has no effect"):
        JudgeConfig(second=JudgeConfig(**ENDPOINT, unjudged="refuse"))


def test_judges_import_nothing_heavy():
    code = (
        "import sys, introspect_ray.judges\n"
        "print(*{'torch', 'ray', 'vllm', 'transformers', 'pyarrow', 'boto3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
