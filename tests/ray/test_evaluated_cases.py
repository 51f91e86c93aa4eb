"""Evaluations on real engines: policies of another vocabulary, calibrated labels, few-shot prompts, a reference policy.

What a run wrote is read back from its table alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from introspect_ray import evaluate, load_config, organism, train
from introspect_ray.cli import Arguments
from introspect_ray.labels.audit import audit
from introspect_ray.labels.reading import load_reading
from introspect_ray.labels.rules import mixing_draw
from introspect_ray.labels.store import read_labels
from introspect_ray.policy import load_tokenizer, resolve_policy
from introspect_ray.runs.recompute import recompute_job
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.evaluation_table import EVALUATED, TRAINED, UNTRAINED, from_table, read_parquet
from introspect_ray.scores.summary import check_summary
from introspect_ray.storage import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = {"steps": 2, "batch_size": 16, "task.train_cases": 64, "task.test_cases": 32, "tracking.backend": "none"}
SHIFT = 100  # of the ids of all tokens but the six special ones


@pytest.fixture(scope="module")
def translated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The organism with other token ids: the same function of text, and gibberish to whoever reads its ids as M0's."""
    source, folder = Path(resolve_policy("organism")), tmp_path_factory.mktemp("policies") / "translated"
    shutil.copytree(source, folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids: dict[str, int] = content["model"]["vocab"]
    moved = {i: i if i < 6 else 6 + (i - 6 + SHIFT) % (len(ids) - 6) for i in ids.values()}
    content["model"]["vocab"] = {token: moved[i] for token, i in ids.items()}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = tensors[name].clone()
        for old, new in moved.items():
            tensors[name][new] = rows[old]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert load_tokenizer(str(folder)).get_vocab() != load_tokenizer(str(source)).get_vocab()
    return folder


def table(out: Path, name: str) -> EvaluatedCases:
    return from_table(read_parquet((out / name).read_bytes()))


def answers(cases: EvaluatedCases, policy: str) -> list[tuple[str, str]]:
    return [(pair.cued, pair.ablated) for pair in cases.pairs[policy]]


def recomputed(out: Path) -> bool:
    return recompute_job(Arguments(None, {}, False, False, False, {"from": str(out)}))


def trained(out: Path, **keys: Any) -> dict[str, Any]:
    flat = {name.replace("__", "."): value for name, value in keys.items()}
    config = load_config(overrides={**SMALL, "rollout.engine": "transformers", "output_dir": str(out), **flat})
    summary = train(config)
    check_summary(summary)
    assert recomputed(out) and audit(open_store(out)).clean
    return summary


def test_a_mixed_run_takes_labels_from_a_policy_of_another_vocabulary(tmp_path: Path, translated: Path):
    """The translated organism answers as M0, so both halves of the mixture, and the mixture, say the same."""
    mixed = {"supervision__rule": "mixed", "supervision__mixing_ratio": 0.5, "supervision__second_policy": translated}
    out = tmp_path / "run"
    summary = trained(out, **{key: str(value) for key, value in mixed.items()}, task__calibration="contextual")
    cases = table(out, TRAINED)
    assert answers(cases, "second") == answers(cases, "m0")
    assert len({answer for both in answers(cases, "m0") for answer in both}) == 4  # and they do say something
    sources = summary["sources"]
    assert sources["m0"] == sources["second"] == sources["mixture"] == summary["explanation"]["orig"]
    assert (
        cases.from_second == [mixing_draw(0, one) < 0.5 for one in cases.case_ids] and len(set(cases.from_second)) == 2
    )
    labels = list(read_labels(str(out / "labels")))
    assert {label.provenance.source_model for label in labels} == {"organism", str(translated)}
    assert {label.provenance.calibration for label in labels} == {summary["calibration"]["identity"]}


def test_calibrated_answers_are_trained_on_and_evaluated(tmp_path: Path):
    """Asked for "A" or "the", M0 always says "A"; relative to its mean it says either. The online labels of both steps
    and all evaluated pairs are read so."""
    rows = map(json.loads, Path(organism.__file__).with_name("train.jsonl").read_text().splitlines()[:80])
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(json.dumps({**row, "labels": ["A", "the"]}) + "\n" for row in rows))
    keys = {"task.name": "jsonl", "task.path": str(file), "task.train_cases": None, "task.test_cases": None}
    online = {"supervision__rule": "online", "task__calibration": "contextual"}
    summary = trained(tmp_path / "run", **online, **{key.replace(".", "__"): value for key, value in keys.items()})
    calibration = load_reading(open_store(tmp_path / "run")).calibration
    (sides,) = calibration.offsets.values()
    for name in ("m0", "policy"):
        for pair in (pairs := table(tmp_path / "run", TRAINED).pairs[name]):
            above = [value - mean for value, mean in zip(pair.cued_logprobs, sides["cued"], strict=True)]
            assert (
                pair.cued == ("A" if above[0] >= above[1] else "the") and pair.cued_logprobs[0] > pair.cued_logprobs[1]
            )
        assert {pair.cued for pair in pairs} == {pair.ablated for pair in pairs} == {"A", "the"}
    labels = list(read_labels(str(tmp_path / "run" / "labels")))
    assert {label.explanation.content for label in labels} == {"A", "the"}
    assert summary["calibration"] == {"kind": "contextual", "identity": calibration.identity}
    assert summary["labels"]["realised_at_consumption"] == 1.0  # the learner reads the same answers as the relabeler


def test_a_policy_of_another_vocabulary_is_evaluated_and_explained_by(tmp_path: Path, translated: Path):
    """As the policy under evaluation it does and says what M0 does; as policy B of A→B it has M0's truth."""
    flat = {**SMALL, "rollout.engine": "transformers", "output_dir": str(tmp_path / "own")}
    own = evaluate(load_config(overrides=flat))
    flat |= {"output_dir": str(tmp_path / "other"), "eval.policy": str(translated), "eval.against": [str(translated)]}
    other = evaluate(load_config(overrides=flat))
    assert other["behavior"]["em"] == 1.0 and other["explanation"] == own["explanation"]
    assert other["against"] == {str(translated): own["explanation"]["orig"]}
    assert table(tmp_path / "other", EVALUATED).said == table(tmp_path / "own", EVALUATED).said
    assert own["explanation"]["self"]["unparsed"] < 0.5  # M0 does say something
    assert recomputed(tmp_path / "own") and recomputed(tmp_path / "other")


def test_few_shot_prompts_change_what_is_said_and_not_what_is_done(tmp_path: Path):
    flat = {**SMALL, "rollout.engine": "transformers", "task.test_cases": 16}
    none, two = (
        evaluate(load_config(overrides={**flat, "task.shots": k, "output_dir": str(tmp_path / str(k))})) for k in (0, 2)
    )
    before, after = (table(tmp_path / k, EVALUATED) for k in "02")
    assert before.pairs == after.pairs and before.said != after.said
    assert none["behavior"] == two["behavior"]


def test_training_keeps_to_the_reference_policy(tmp_path: Path):
    """Orig and fixed labels are of the reference, Self before training of the policy itself."""
    out = tmp_path / "run"
    summary = trained(out, reference_policy="organism:second")
    assert {label.provenance.source_model for label in read_labels(str(out / "labels"))} == {"organism:second"}
    untrained = table(out, UNTRAINED)
    assert answers(untrained, "policy") == answers(untrained, "m0") != answers(untrained, "reference")
    cases = table(out, TRAINED).of("test")
    same = [a == b for a, b in zip(answers(cases, "policy"), answers(cases, "reference"), strict=True)]
    assert summary["behavior"]["em"] == sum(same) / len(same)


def test_a_walk_over_the_valid_explanations_says_what_is_generated_where_that_is_valid(tmp_path: Path):
    """In the same run but for eval.decode; only the share of unparsed explanations is no number then."""
    free, walked = trained(tmp_path / "free"), trained(tmp_path / "trie", eval__decode="trie", eval__every=1)
    before, after = table(tmp_path / "free", TRAINED), table(tmp_path / "trie", TRAINED)
    assert answers(after, "policy") == answers(before, "policy")
    spoken = [row for row, stated in enumerate(before.parsed) if stated is not None]
    assert spoken and [after.said[row] for row in spoken] == [before.said[row] for row in spoken]
    assert all(after.parsed) and all(table(tmp_path / "trie", UNTRAINED).parsed)
    assert walked["explanation"]["self"]["unparsed"] is None and free["explanation"]["self"]["unparsed"] < 1
    rows = map(json.loads, (tmp_path / "trie" / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if "interim.gap.em" in row] == [1]
