"""jobs/evaluate.py before its engines start: what is refused, and what the engines of any node are given."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from introspect_ray.actors.policy_here import policy_here
from introspect_ray.cli import parse
from introspect_ray.config import RunConfig, override
from introspect_ray.errors import UserError
from introspect_ray.labels.label_sets import save_pairs
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.policy import add_lora, load_model, load_saved, resolve_policy
from introspect_ray.records import BehaviorPair, Explanation
from introspect_ray.runs import evaluate
from introspect_ray.runs.evaluate import _Asked, _served
from introspect_ray.runs.jobs import evaluate_job
from introspect_ray.runs.preflight import prepare
from introspect_ray.runs.setup import label_set
from introspect_ray.storage import open_store

M0 = resolve_policy("organism")


def refused(*args: str) -> str:
    with pytest.raises(UserError) as caught:
        evaluate_job(parse("evaluate", [*args]))
    return str(caught.value)


def test_an_s3_folder_that_holds_nothing(s3_env, tmp_path):
    said = refused(f"output_dir={tmp_path / 'out'}", f"eval.policy={s3_env}/mistyped")
    assert said == f"eval.policy={s3_env}/mistyped: there is nothing; give the policy/ folder of a run"
    assert not (tmp_path / "out").exists()


def test_overwrite_does_not_delete_the_policy_to_evaluate(tmp_path):
    run = tmp_path / "run"
    (run / "policy").mkdir(parents=True)
    assert "--overwrite would delete" in refused(f"output_dir={run}", f"eval.policy={run / 'policy'}", "--overwrite")
    assert "has no config.json" in refused(f"output_dir={tmp_path / 'ru'}", f"eval.policy={run / 'policy'}")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, torch.Tensor]:
    """(a PEFT folder, the name of a weight it changes, that weight with α / r · BA = BA added)."""
    model = add_lora(load_model(M0), 4)
    name, layer = next((n, m) for n, m in model.named_modules() if hasattr(m, "lora_B"))
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.25)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    plain = f"{name.removeprefix('base_model.model.')}.weight"
    return folder, plain, (layer.base_layer.weight + change).detach()


def test_a_merged_adapter_is_had_through_the_cache_by_any_node(s3_env, adapter):
    """Nothing of it is on this machine's disk while the engines fetch it, nor in the cache afterwards."""
    folder, name, expected = adapter
    cfg, prepared = RunConfig(), SimpleNamespace(policy_path=M0, cache_uri=f"{s3_env}/cache")
    with _served(override(cfg, {"eval.policy": f"{s3_env}/policy"}), prepared, str(folder)) as uri:
        assert uri.startswith(f"{s3_env}/cache/evaluated/")
        with policy_here(uri) as local:
            tensors, _ = load_saved(local)
        assert not Path(local).exists()
    torch.testing.assert_close(tensors[name], expected)
    assert not open_store(f"{s3_env}/cache").list()


def test_a_whole_policy_is_served_from_where_it_is(s3_env, tmp_path):
    cfg = override(RunConfig(), {"eval.policy": f"{s3_env}/policy"})
    with _served(cfg, SimpleNamespace(), M0) as name:
        assert name == f"{s3_env}/policy"
    with _served(RunConfig(), SimpleNamespace(), None) as name:
        assert name == "organism"
    open_store(s3_env).upload_dir(M0, "policy")
    with policy_here(f"{s3_env}/policy") as local:
        assert load_saved(local)[0].keys() == load_saved(M0)[0].keys()


def test_a_policy_whose_label_set_is_in_the_cache_needs_no_engine(tmp_path, monkeypatch, capsys):
    """Its answers on the held-out cases are those of the set, read with offsets from the set's training cases.

    There A has the logprob -1 and B, C, D -3 on x, so a held-out x with A at -1.5 and B at -3.2 is answered B: above
    its usual value by -0.2, where A is above its own by -0.5.
    """
    small = {"task.train_cases": 4, "task.test_cases": 2, "rollout.engine": "transformers"}
    cfg = override(RunConfig(), {**small, "output_dir": str(tmp_path), "task.calibration": "contextual"})
    prepared = prepare(cfg, training=False)
    tokens = prepared.tokens_of(cfg.policy)
    usual, held_out = (-1.0, -3.0, -3.0, -3.0), (-1.5, -3.2, -4.0, -4.0)
    pairs = [BehaviorPair(one, "A", "A", usual, usual, False, False, 0) for one in tokens.train.case_ids]
    pairs += [BehaviorPair(one, "A", "A", held_out, usual, False, False, 0) for one in tokens.test.case_ids]
    save_pairs(prepared.cache_uri, label_set(cfg, tokens, prepared.policy_id, None), PairTable.build(pairs))
    monkeypatch.setattr(evaluate, "_pool", lambda *given: pytest.fail("an engine was started"))
    asked = _Asked(cfg, prepared, None)
    asked.ask(cfg.policy, tokens, explain_too=False)
    answered = asked.behaviors[cfg.policy].pairs
    assert [pair.case_id for pair in answered] == list(tokens.test.case_ids)
    assert [pair.cued for pair in answered] == ["B", "B"]
    assert capsys.readouterr().out == "cached   what organism answers: no engine is started for it\n"
    valid = [next(iter(case.explanations.values()))[:-1] for case in tokens.test]
    engines = SimpleNamespace(explain_now=lambda *given: valid)
    monkeypatch.setattr(evaluate, "_pool", lambda *given: nullcontext(engines))
    for _ in ("by an engine", "from the cache"):
        asked = _Asked(cfg, prepared, None)
        asked.ask(cfg.policy, tokens, explain_too=True)
        assert [one.parsed for one in asked.explanations] == [Explanation(False, "A")] * 2
        assert asked.behaviors[cfg.policy].pairs == answered
        monkeypatch.setattr(evaluate, "_pool", lambda *given: pytest.fail("an engine was started again"))
