"""`introspect-ray label` without engines: parts and their files, what is missing, provenance, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from introspect_ray.cli import parse
from introspect_ray.commands import label_flags
from introspect_ray.config import RunConfig, override
from introspect_ray.errors import AlarmError, UserError
from introspect_ray.judges import JudgeReport
from introspect_ray.labels.label_sets import load_pairs
from introspect_ray.records import BehaviorPair, Explanation
from introspect_ray.runs.bulk_label import DONE, check_labelling, finish, label_job, labelling_config, read_set
from introspect_ray.runs.bulk_parts import Answered, Part, differing, missing_parts, part_bytes, parts_of, provenance
from introspect_ray.storage import LocalStore, open_store

SOURCE = {"policy": "m", "policy_digest": "d1", "judge": "keyword:refusal:1"}
CLOSED = BehaviorPair("c1", "A", "B", (-0.1, -2.4), (-1.9, -0.2), False, True, 0)
FREE = BehaviorPair("f1", "refuse", "comply", (), (), False, False, 0, (7,), (8, 9))
SMALL = {"task.train_cases": 20, "task.test_cases": 5, "rollout.engine": "transformers", "rollout.group_size": 2}


def test_parts_are_whole_groups_named_by_their_rows():
    """8 groups of 64 cases are 512: of 1,100 cases the last part has 1,100 - 2 · 512 = 76."""
    parts = parts_of(1100, 64)
    assert parts == [Part(0, 512), Part(512, 512), Part(1024, 76)]
    assert parts[2].name == "pairs/rows-00001024-00001099.parquet" and parts_of(512, 64) == [Part(0, 512)]
    there = [parts[1].name, "pairs/rows-00000000-00000099.parquet", "summary.json"]
    assert missing_parts(parts, there) == [parts[0], parts[2]] and missing_parts(parts, []) == parts


def test_a_part_has_its_pairs_texts_explanations_and_provenance():
    report = JudgeReport("keyword:refusal:1", 2, 1, "", None)
    said = [("it changes", Explanation(True, "B")), ("hm", None)]
    data = part_bytes(Answered([CLOSED, FREE], [None, ("no", "sure")], said, report), ["train", "test"], SOURCE)
    table = pq.read_table(pa.BufferReader(data))
    assert json.loads(table.schema.metadata[b"provenance"]) == SOURCE
    assert JudgeReport.from_summary(json.loads(table.schema.metadata[b"judged"])) == report
    one, two = table.to_pylist()
    assert (one["cued"], one["ablated"], one["cued_logprobs"], one["side"]) == ("A", "B", [-0.1, -2.4], "train")
    assert (one["judge"], one["cued_text"], one["said"]) == ("", None, "it changes")
    assert (one["said_changed"], one["said_content"]) == (True, "B")
    assert (two["judge"], two["cued_text"], two["ablated_text"]) == ("keyword:refusal:1", "no", "sure")
    assert (two["said"], two["said_changed"], two["ablated_response"]) == ("hm", None, [8, 9])
    assert {row["source_model"] + row["policy_digest"] for row in (one, two)} == {"md1"}
    silent = part_bytes(Answered([CLOSED], [None], None, None), ["train"], SOURCE)
    assert pq.read_table(pa.BufferReader(silent))["said"].to_pylist() == [None]


def test_a_pair_comes_back_from_its_part(tmp_path):
    """And the judges' reports of all parts add up: 2 + 4 replies."""
    store = LocalStore(str(tmp_path))
    for part, pair, replies in ((Part(0, 1), CLOSED, 2), (Part(1, 1), FREE, 4)):
        answered = Answered([pair], [None], None, JudgeReport("j", replies, 0, "", None))
        store.write_bytes(part.name, part_bytes(answered, ["train"], SOURCE))
    pairs, judged = read_set(store)
    assert list(pairs) == [CLOSED, FREE] and judged and judged.replies == 6
    store.write_bytes(Part(1, 1).name, b"PAR1 half")
    with pytest.raises(UserError, match="is damaged"):
        read_set(store)


def set_of(out: Path | str, resume: bool = False, **flat: object):
    cfg = override(RunConfig(), {**SMALL, "output_dir": str(out), **{k.replace("__", "."): v for k, v in flat.items()}})
    return check_labelling(cfg, explain=False, resume=resume, overwrite=False)


def test_provenance_tells_label_sets_apart(tmp_path):
    first, again = (set_of(tmp_path / name).provenance for name in "ab")
    assert first == again and (first["cases"], first["engine"]) == ({"train": 20, "test": 5}, "transformers")
    others = {
        "policy": set_of(tmp_path, policy="organism:second").provenance,
        "task_digest": set_of(tmp_path, task__seed=1).provenance,
        "engine_group_size": set_of(tmp_path, rollout__group_size=4).provenance,
        "engine_dtype": set_of(tmp_path, rollout__dtype="bfloat16").provenance,
    }
    for name, other in others.items():
        assert differing(first, other) == name
    assert differing({**first, "package_version": "0"}, first) is None
    assert others["policy"]["cases_digest"] == first["cases_digest"]  # another policy of one tokenizer
    assert others["task_digest"]["cases_digest"] != first["cases_digest"]


def test_the_provenance_of_fewer_explanation_tokens_is_another(tmp_path):
    prepared = set_of(tmp_path).prepared
    made = [provenance(RunConfig(), "d", (prepared.train, prepared.test), "", longest) for longest in (None, 8)]
    assert differing(*made) == "max_explanation_tokens"


@pytest.mark.parametrize("folder", ["local", "s3"])
def test_only_what_is_missing_is_labelled_and_a_finished_set_is_left_alone(tmp_path, s3_env, capsys, folder):
    """25 cases in groups of 2: parts of 16 and 9. Local and on S3."""
    out = str(tmp_path / "out") if folder == "local" else f"{s3_env}/out"
    store = open_store(out)
    assert set_of(out).missing == [Part(0, 16), Part(16, 9)]
    store.write_json(".introspect-ray.json", {})
    store.write_json("provenance.json", set_of(out, resume=True).provenance)
    whole = part_bytes(Answered([CLOSED], [None], None, None), ["train"], SOURCE)
    store.write_bytes(Part(0, 16).name, whole[:-1])
    assert set_of(out, resume=True).missing == [Part(0, 16), Part(16, 9)]
    assert f"{Part(0, 16).name} is damaged" in capsys.readouterr().err
    store.write_bytes(Part(0, 16).name, whole)
    assert set_of(out, resume=True).missing == [Part(16, 9)]
    with pytest.raises(UserError, match=r"cannot resume .*: policy was 'organism' and is now 'organism:second'"):
        set_of(out, resume=True, policy="organism:second")
    with pytest.raises(UserError, match="--resume to continue"):
        set_of(out)
    store.write_bytes(Part(16, 9).name, whole)
    store.write_json(DONE, {})
    given = [f"{key}={value}" for key, value in SMALL.items()]
    label_job(parse("", [*given, f"output_dir={out}", "--resume"], label_flags))
    assert capsys.readouterr().out == f"already finished: {store.join(DONE)}\n"


def test_a_finished_set_is_the_cache_entry_of_a_run(tmp_path):
    todo = set_of(tmp_path)
    store, tables = open_store(tmp_path), (todo.prepared.train, todo.prepared.test)
    ids = [case_id for table in tables for case_id in table.case_ids]
    pairs = [BehaviorPair(one, "A", "B", (-1.0,) * 4, (-2.0,) * 4, False, False, 0) for one in ids]
    for part in todo.parts[:1]:
        answered = Answered(pairs[: part.cases], [None] * part.cases, None, None)
        store.write_bytes(part.name, part_bytes(answered, ["train"] * part.cases, todo.provenance))
    with pytest.raises(UserError, match="has 16 pairs for 25 cases"):
        finish(todo, store)
    last = Answered(pairs[16:], [None] * 9, None, None)
    store.write_bytes(todo.parts[1].name, part_bytes(last, ["train"] * 4 + ["test"] * 5, todo.provenance))
    done = finish(todo, store)
    assert (done["changed"], done["off_format"], done["judges"]) == (25, 0, None)
    key = Path(done["cached"]).stem
    kept = load_pairs(str(tmp_path / "cache"), key)
    assert kept is not None and list(kept) == pairs


def test_too_many_replies_without_a_verdict(tmp_path):
    todo = set_of(tmp_path)
    store, ids = open_store(tmp_path), [*todo.prepared.train.case_ids, *todo.prepared.test.case_ids]
    pairs = [BehaviorPair(one, "A", "B", (), (), False, False, 0) for one in ids]
    for part in todo.parts:
        answered = Answered(
            pairs[part.first : part.first + part.cases], [("", "")] * part.cases, None, JudgeReport("j", 4, 4, "", None)
        )
        store.write_bytes(part.name, part_bytes(answered, ["train"] * part.cases, todo.provenance))
    with pytest.raises(AlarmError, match="no verdict on 8 of 8 replies"):
        finish(todo, store)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["eval.policy=organism:second"], "eval.policy=organism:second"),
        (["eval.decode=trie"], "eval.decode=trie has no effect on `label`"),
        (["task.shots=2"], "task.shots=2 has no effect on `label`"),
        (["supervision.rule=online"], "supervision.rule=online has no effect on `label`"),
        (["policy=/nowhere"], "policy '/nowhere'"),
        (["task.name=jsonl"], "task.path"),
    ],
)
def test_what_is_refused_before_anything_starts(tmp_path, given, said):
    with pytest.raises(UserError) as caught:
        label_job(parse("", [*given, f"output_dir={tmp_path / 'out'}"], label_flags))
    assert said in str(caught.value) and not (tmp_path / "out").exists()


def test_a_config_of_a_training_run_names_the_same_engines():
    """A run with the learner as its engine labels M0 by rollout.serving_engine; a trainer's GPUs are not asked for."""
    given = {"supervision.rule": "online", "rollout.engine": "learner", "rollout.serving_engine": "transformers"}
    cfg = labelling_config(override(RunConfig(), {**given, "train.use_gpu": True, "train.offload": True}))
    assert cfg.rollout.served_by == "transformers" and not cfg.train.use_gpu
