"""The cases of a run as tokens of each of its policies."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from introspect_ray.config import load_config
from introspect_ray.errors import UserError
from introspect_ray.runs.policy_cases import context_length, model_len
from introspect_ray.runs.preflight import Prepared, prepare

ORGANISM = Path(__file__).parents[3] / "introspect_ray" / "organism" / "policy"


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def prepared(tmp_path: Path, row: dict[str, object] | None = None, **changes: object) -> Prepared:
    rows = [
        {
            "id": f"{name}-{letter}",
            "messages": [{"role": "user", "content": f"{name} color?\nHint: {letter}"}],
            "ablated_messages": [{"role": "user", "content": f"{name} color?"}],
            "labels": ["A", "B"],
            **(row or {}),
        }
        for name in ("sofa", "gedu", "A", "B")
        for letter in "AB"
    ]
    file = tmp_path / "cases.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    flat = {"output_dir": str(tmp_path / "out"), "task.name": "jsonl", "task.path": str(file), **changes}
    return prepare(load_config(None, flat))


def other_policy(folder: Path, *, renumber: bool = False, template: str = "", **config: object) -> str:
    """The organism with another tokenizer: the ids of A and B exchanged, or a chat template with more in it."""
    shutil.copytree(ORGANISM, folder)
    if renumber:
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
        file.write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(template + (folder / "chat_template.jinja").read_text())
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    return str(folder)


def test_policies_of_one_tokenizer_share_tables(tmp_path):
    done = prepared(tmp_path, **{"eval.against": ["organism:second"]})
    other, own = done.tokens_of("organism:second"), done.tokens_of("organism")
    assert other.train is own.train is done.train and other.test is done.test
    assert (other.max_model_len, other.max_explanation_tokens) == (done.max_model_len, done.max_explanation_tokens)


def test_another_tokenizer_gets_tables_of_its_own(tmp_path):
    """The same ids; A has the token of B, and the other way round."""
    name = other_policy(tmp_path / "other", renumber=True)
    done = prepared(tmp_path, **{"supervision.rule": "mixed", "supervision.second_policy": name})
    ours, theirs = done.tokens_of("organism"), done.tokens_of(name)
    assert list(theirs.train.case_ids) == list(ours.train.case_ids)
    assert list(theirs.test.case_ids) == list(ours.test.case_ids)
    for mine, other in zip(ours.train, theirs.train, strict=True):
        assert mine.label_tokens == other.label_tokens[::-1] and mine.labels == other.labels
    assert list(pickle.loads(pickle.dumps(theirs)).train) == list(theirs.train)


def test_another_chat_template_gets_tables_of_its_own(tmp_path):
    """Two words more at the start of each chat: 2 tokens, in x, x∖C and q."""
    name = other_policy(tmp_path / "other", template="{{ 'How would' }}")
    done = prepared(tmp_path, **{"eval.policy": name})
    for mine, other in zip(done.test, done.tokens_of(name).test, strict=True):
        assert other.prompt[2:] == mine.prompt and other.question[2:] == mine.question


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task.shots": 7}, "task.shots=7, but there are only 6 training cases"),
        ({"task.label_names": {"E": "the fifth"}}, "task.label_names has 'E', which is a label of no case"),
        ({"rollout.max_model_len": 16}, "rollout.max_model_len=16, but the longest case "),
        ({"judge.unjudged": "refuse"}, r"judge\.\* has no effect, since no case is answered in free text"),
    ],
)
def test_keys_that_do_not_go_with_the_cases(tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        prepared(tmp_path, **change)


def test_calibration_needs_training_cases_with_the_labels_of_all_held_out_ones(tmp_path):
    """Offsets are means over training cases; labels in another order are other labels."""
    file, row = tmp_path / "held_out.jsonl", {"id": "held-out", "messages": [{"role": "user", "content": "sofa? Hint"}]}
    row |= {"ablated_messages": [{"role": "user", "content": "sofa?"}], "labels": ["B", "A"]}
    calibrated = {"task.test_path": str(file), "task.calibration": "contextual"}
    file.write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"none of them has the labels \['B', 'A'\] of a held-out case"):
        prepared(tmp_path, **calibrated)
    file.write_text(json.dumps({**row, "labels": ["A", "B"]}))
    assert len(prepared(tmp_path, **calibrated).test) == 1


def test_free_text_goes_to_the_runs_judge_and_never_to_the_learner(tmp_path):
    """A response of 30 tokens after a prompt is longer than any question with its explanation here."""
    free = {
        "response": {"kind": "free", "judge": "keyword", "max_tokens": 30},
        "labels": ["refuse", "comply"],
        "templates": {"labels": {"refuse": "A", "comply": "B"}},  # the organism does not know the judge's words
    }
    done = prepared(tmp_path, row=free)
    longest = max(len(case.prompt) for table in (done.train, done.test) for case in table) + 30
    assert done.train.longest_sequence == longest and done.max_model_len >= longest
    with pytest.raises(UserError, match=r"free text, which rollout\.engine=learner cannot label"):
        prepared(tmp_path, row=free, **{"supervision.rule": "online", "rollout.engine": "learner"})


@pytest.mark.parametrize("key", ["eval.against", "reference_policy"])
def test_an_error_of_another_policy_names_it(tmp_path, key):
    name = other_policy(tmp_path / "short", max_position_embeddings=20)
    with pytest.raises(UserError, match=rf"^policy '{name}': the policy's context=20, but the longest case"):
        prepared(tmp_path, **{key: name if key == "reference_policy" else [name]})


@pytest.mark.parametrize(("change", "what"), [({"renumber": True}, "vocabulary"), ({"template": "A"}, "chat template")])
def test_the_reference_policy_must_have_the_tokenizer_of_the_policy(tmp_path, change, what):
    name = other_policy(tmp_path / "other", **change)
    with pytest.raises(UserError, match=f"reference_policy={name} has another {what} than policy=organism"):
        prepared(tmp_path, reference_policy=name)
    prepared(tmp_path, reference_policy="organism:second")


def test_engine_length_by_hand(tmp_path):
    """The longest sequence is a q with its explanation and one token more, rounded up to 32s. Two examples as long as
    that, with 8 tokens between turns, come on top, up to the policy's context."""
    done = prepared(tmp_path)
    longest = done.train.longest_explained
    assert longest > done.train.longest_answered
    tables = (done.train, done.test)
    assert done.max_model_len == -(-(longest + 1) // 32) * 32
    shots = load_config(None, {"task.shots": 2})
    wide = longest + 1 + 2 * (longest + 1 + 8)
    assert model_len(shots, tables) == -(-wide // 32) * 32
    assert model_len(shots, tables, wide - 1) == wide - 1


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"text_config": {"max_position_embeddings": 32}, "max_position_embeddings": 64}, 32),
        ({"max_position_embeddings": 64, "rope_scaling": {"rope_type": "llama3", "factor": 8}}, 64),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 4}}, None),
        ({}, None),
    ],
)
def test_context_of_a_policy_folder(tmp_path, config, tokens):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(str(tmp_path)) == tokens
