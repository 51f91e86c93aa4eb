"""Values that no configuration may hold: what cannot be used, what is not finite, and secrets, which a refusal does not
repeat. Keys without effect are named."""

from __future__ import annotations

import pytest

from introspect_ray.cli import parse
from introspect_ray.config import load_config
from introspect_ray.config.effect import without_effect
from introspect_ray.errors import UserError

CANARY = "canary-2b7e15"
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
LAUGHS += "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n"


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(None, parse("job", overrides).overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (bytes(range(128, 256)), "is not UTF-8 text (byte 0): save it as UTF-8"),
        ("steps: 3\n".encode("utf-16"), "is not UTF-8 text"),
        (b"steps: " + b"[" * 5000 + b"]" * 5000, "is nested too deeply"),
        (b"steps: " + b"[" * 60 + b"]" * 60, "is nested more than 32 levels deep"),
        (b"task: &t {name: organism, label_names: *t}\n", "is nested more than 32 levels deep"),
        (LAUGHS.encode(), "has more than 100000 values"),
        (b"steps: 2024-99-99\n", "is not valid YAML: month must be in 1..12"),
        (b"steps: " + b"9" * 5000, "is not valid YAML: Exceeds the limit"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_one_short_line(tmp_path, content, says):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(str(tmp_path / "mine.yaml"))
    assert f"config file {tmp_path / 'mine.yaml'} {says}" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("kl_weight=inf", "'kl_weight': Input should be a finite number"),
        ("learning_rate=.nan", "'learning_rate': Input should be"),
        ("judge.timeout_s=1e999", "'judge.timeout_s': Input should be a finite number"),
        ("sweep.reduction=.inf", "'sweep.reduction': Input should be a finite number"),
        ("kl_weight=1e300", "less than or equal to 1000000"),
        (f"seed={2**63}", "seed is a number beyond 64 bits"),
        (f"task.seed=-{2**63}", "task.seed is a number beyond 64 bits"),
        ("batch_size=1000000000000", "less than or equal to 1000000"),
        ("train.threads=1000000", "less than or equal to 1024"),
        (f"steps={'9' * 5000}", "the value is not valid YAML"),
        ("output_dir=a\0b", "output_dir has a NUL character"),
        ("policy=\udcff", "policy is not valid text"),
        (f"output_dir=/tmp/{'x' * 300}", "output_dir is a path of 305 bytes with a name of 300"),
        (f"supervision.second_policy={'x/' * 3000}", "supervision.second_policy is a path of 6000 bytes"),
        (f"task.label_names={'y' * 9000}", "got 'yyyy"),
    ],
)
def test_values_beyond_numbers_and_files(override, says):
    said = refused(override)
    assert says in said and len(said) < 700


@pytest.mark.parametrize(
    "override",
    [
        f"tracking.uri=http://me:{CANARY}@mlflow:5000",
        f"tracking.uri=https://{CANARY}@mlflow:5000",
        f"tracking.uri=postgresql://me:{CANARY}@db/mlflow",
        f"tracking.uri=postgresql://db/mlflow?user=me&password={CANARY}",
        f"output_dir=s3://id:{CANARY}@bucket/run",
        f"judge.request={{extra: {{Api-Key: {CANARY}}}}}",
        f"judge.key_env=sk-{CANARY}",
    ],
)
def test_a_secret_is_refused_and_not_repeated(override):
    said = refused("judge.kind=llm", "judge.endpoint=http://judge/v1", "judge.model=m", override)
    assert override.partition("=")[0] in said and CANARY not in said and "written into run.json" in said


def test_addresses_without_a_secret_are_taken():
    for uri in ("postgresql://me@db/mlflow", "http://mlflow:5000/a?b=c", "sqlite:////tmp/a@b:c.db"):
        load_config(None, {"tracking.uri": uri})


def test_keys_without_effect_are_named_unless_a_trial_reads_them():
    given = {"supervision.agreement": 0.7, "lora_rank": 8, "tracking.backend": "jsonl", "tracking.experiment": "x"}
    fixed = load_config(None, given)
    assert without_effect([fixed]) == [
        "supervision.agreement=0.7 has no effect: it is for supervision.rule=online",
        "lora_rank=8 has no effect: it is for method=lora",
        "tracking.experiment=x has no effect: it is for tracking.backend=mlflow",
    ]
    online = load_config(None, {**given, "supervision.rule": "online", "method": "lora", "tracking.backend": "mlflow"})
    assert without_effect([fixed, online]) == without_effect([online]) == []


def test_what_a_preset_sets_is_not_the_users():
    """organism.yaml names a second policy, which fixed labels do not need."""
    assert load_config().supervision.second_policy and without_effect([load_config()]) == []
