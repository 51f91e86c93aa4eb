"""The learner in one process: steps, metrics, checkpoints, export. For two ranks see test_two_ranks.py."""

import math
import threading

import pytest
import torch
from learner_helpers import (
    LETTER_IDS,
    LETTERS,
    make_cases,
    make_config,
    make_labels,
    make_pairs,
    make_texts,
    save_model,
)
from torch.distributed.checkpoint import FileSystemWriter

from introspect_ray.cases.probes import case_item
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.errors import UserError
from introspect_ray.policy import load_model, load_saved
from introspect_ray.records import AuxiliaryText, BehaviorPair, Explanation, Label
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

CASES = make_cases(8)
TOKENIZED = {case.case_id: case for case in CASES}
LABELS = make_labels(CASES)
M0 = make_pairs(CASES)
TEXTS = make_texts(3)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    root = tmp_path_factory.mktemp("policy")
    path = save_model(root / "model")
    return path, build_reference(path, CASES, None, str(root / "cache"))


def make_learner(policy, **changes):
    return Learner(make_config(**changes), policy[0], policy[1], TOKENIZED)


def label_choice(logits):
    return LETTERS[max(range(4), key=lambda i: logits[LETTER_IDS[i]].item())]


def test_first_step_metrics_are_those_of_m0(policy):
    """Before the first update M is M0: the KL is 0, and the behaviour is M0's. Three labels of eight are E(M0)."""
    model = load_model(policy[0], torch.float32)
    ce, tokens, pairs = 0.0, 0, {}
    with torch.no_grad():
        for case, label in zip(CASES, LABELS, strict=True):
            e = case.explanations[label.explanation]
            logprobs = model(input_ids=torch.tensor([case.question + e])).logits[0].log_softmax(-1)
            ce -= sum(logprobs[len(case.question) - 1 + k, token].item() for k, token in enumerate(e))
            tokens += len(e)
            cued, ablated = (
                label_choice(model(input_ids=torch.tensor([s])).logits[0, -1]) for s in (case.prompt, case.ablated)
            )
            pairs[case.case_id] = BehaviorPair(case.case_id, cued, ablated, (), (), False, False, 0)
    labels = [
        Label(case_id, pair.explanation if i < 3 else _other(pair.explanation), None, LABELS[0].provenance)
        for i, (case_id, pair) in enumerate(pairs.items())
    ]
    learner = make_learner(policy)
    result = learner.step(labels, pairs)
    assert result["kl"] == pytest.approx(0, abs=1e-5)
    assert result["behavior_em"] == 1.0
    assert result["realised_at_consumption"] == 3 / 8
    assert result["explanation_self"] == result["explanation_orig"]  # E(M_0) = E(M0)
    result = make_learner(policy).step(LABELS, M0)
    assert result["cross_entropy"] == pytest.approx(ce / tokens, rel=1e-5)
    assert result["loss"] == pytest.approx(result["cross_entropy"] + result["kl"], rel=1e-6)


def plain_logprobs(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)


def test_auxiliary_texts_add_their_mean_cross_entropy(policy):
    """Texts 31 32 33 (targets 32, 33) and 34 35 36 37 (target 36): the mean of three -log p, times the weight of 2."""
    texts = [
        AuxiliaryText("a", (31, 32, 33), (False, True, True)),
        AuxiliaryText("b", (34, 35, 36, 37), (False, False, True, False)),
    ]
    model = load_model(policy[0], torch.float32)
    a, b = plain_logprobs(model, texts[0].tokens), plain_logprobs(model, texts[1].tokens)
    mean = -(a[0, 32] + a[1, 33] + b[1, 36]).item() / 3
    without = make_learner(policy).step(LABELS, M0)
    result = make_learner(policy, auxiliary={"path": "given", "weight": 2.0}).step(LABELS, M0, texts)
    assert without["auxiliary"] is None and result["auxiliary"] == pytest.approx(mean, rel=1e-5)
    assert result["loss"] == pytest.approx(without["loss"] + 2 * mean, rel=1e-5)
    ignored = make_learner(policy, auxiliary={"path": "given", "weight": 0.0}).step(LABELS, M0, texts)
    assert ignored["auxiliary"] == pytest.approx(mean, rel=1e-5)
    assert [ignored[name] for name in ("loss", "grad_norm")] == pytest.approx(
        [without[name] for name in ("loss", "grad_norm")], rel=1e-5
    )


def test_the_sequence_normalisation_sums_over_tokens(policy, tmp_path):
    """With letters a prompt has one KL position, so the KL is the same; the cross-entropy is tokens / cases larger.

    M0 is another policy than the one that is trained, so that the KL is not 0.
    """
    tokens = sum(len(TOKENIZED[label.case_id].explanations[label.explanation]) for label in LABELS)
    other = policy[0], build_reference(save_model(tmp_path / "m0", "llama"), CASES, None, str(tmp_path))
    by_token = make_learner(other).step(LABELS, M0)
    by_sequence = make_learner(other, loss_normalisation="sequence").step(LABELS, M0)
    assert by_sequence["cross_entropy"] == pytest.approx(by_token["cross_entropy"] * tokens / len(CASES), rel=1e-5)
    assert by_sequence["kl"] == pytest.approx(by_token["kl"], rel=1e-5) and by_token["kl"] > 0.1
    assert by_sequence["loss"] == pytest.approx(by_sequence["cross_entropy"] + by_sequence["kl"], rel=1e-6)


def _other(explanation):
    return Explanation(not explanation.changed, explanation.content)


def test_training_learns_and_kl_holds_behaviour(policy):
    loose, held = make_learner(policy, kl_weight=0.0), make_learner(policy, kl_weight=10.0)
    for _ in range(25):
        free, bound = loose.step(LABELS, M0), held.step(LABELS, M0)
    assert free["cross_entropy"] < 0.3
    assert bound["kl"] < 0.2 * free["kl"]


def test_small_token_budget_gives_the_same_training(policy):
    one, many = make_learner(policy), make_learner(policy, train={"token_budget": 50})
    for _ in range(3):
        a, b = one.step(LABELS, M0, TEXTS), many.step(LABELS, M0, TEXTS)
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_probe_equals_a_plain_forward_and_the_exported_policy(policy, tmp_path):
    learner = make_learner(policy)
    learner.step(LABELS, M0)
    learner.export(str(tmp_path / "out"))
    model = load_model(str(tmp_path / "out"))
    assert model.dtype == torch.float32
    case = CASES[3]
    with torch.no_grad():
        expected = [
            model(input_ids=torch.tensor([s])).logits[0, -1].log_softmax(-1)[i].item()
            for s in (case.prompt, case.ablated)
            for i in LETTER_IDS
        ]
    assert learner.probe((case_item(case),)) == pytest.approx(expected, abs=1e-5)
    learner.step(LABELS, M0)
    cued, ablated = learner.last_logprobs[case.case_id]  # of the weights before this update
    assert cued + ablated == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stream_yields_the_weights_one_by_one_as_described(policy, dtype):
    """A GPU transfer announces and sends the same tensors that go through the object store otherwise."""
    learner = make_learner(policy, train={"dtype": dtype})
    whole, streamed = learner.weights(), list(learner.stream())
    assert [(name, t.dtype, tuple(t.shape)) for name, t in streamed] == learner.described()
    assert [name for name, _ in streamed] == list(whole) and "lm_head.weight" in whole
    assert all(torch.equal(tensor, whole[name]) for name, tensor in streamed)


def test_weights_are_a_copy_with_the_tied_head(policy):
    learner = make_learner(policy)
    before = learner.weights()
    assert "lm_head.weight" in before and torch.equal(before["lm_head.weight"], before["model.embed_tokens.weight"])
    kept = {name: tensor.clone() for name, tensor in before.items()}
    learner.step(LABELS, M0)
    assert all(torch.equal(before[name], kept[name]) for name in kept), "weights() aliases the live model"
    assert not torch.equal(learner.weights()["lm_head.weight"], kept["lm_head.weight"])
    shared, copied = learner.weights(copy=False), learner.weights()
    assert all(torch.equal(shared[name], tensor) for name, tensor in copied.items())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpoint_continues_bit_for_bit(policy, tmp_path, monkeypatch, method):
    """The files are written only after two more steps; they hold the state at the call of save_checkpoint."""
    go = threading.Event()
    write_data = FileSystemWriter.write_data
    monkeypatch.setattr(FileSystemWriter, "write_data", lambda *args: go.wait(60) and write_data(*args))
    changes = {"method": method, "lora_rank": 4, "train": {"weight_decay": 0.1}}
    uninterrupted = make_learner(policy, **changes)
    for _ in range(2):
        uninterrupted.step(LABELS, M0)
    written = uninterrupted.save_checkpoint(str(tmp_path / "checkpoint"))
    expected = [uninterrupted.step(LABELS, M0) for _ in range(2)]
    assert not written.done()
    go.set()
    written.result()
    resumed = make_learner(policy, **{**changes, "seed": 5})
    resumed.load_checkpoint(str(tmp_path / "checkpoint"))
    assert [resumed.step(LABELS, M0) for _ in range(2)] == expected
    ours, theirs = uninterrupted.weights(), resumed.weights()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_lora_trains_the_adapter_only_and_exports_it(policy, tmp_path):
    from peft import PeftModel

    learner = make_learner(policy, method="lora", lora_rank=4)
    assert learner.step(LABELS, M0)["kl"] == pytest.approx(0, abs=1e-5)  # B = 0: the adapter changes nothing yet
    learner.step(LABELS, M0)
    names = set(learner.weights())
    assert names and all("lora_" in name and ".default" not in name for name in names)
    config = learner.adapter_config()
    assert config["r"] == config["lora_alpha"] == 4 and "lm_head" not in config["target_modules"]
    learner.export(str(tmp_path / "out"))
    model = PeftModel.from_pretrained(load_model(policy[0], torch.float32), str(tmp_path / "out")).eval()
    case = CASES[0]
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([case.prompt])).logits[0, -1].log_softmax(-1)
    assert learner.probe((case_item(case),))[:4] == pytest.approx([logprobs[i].item() for i in LETTER_IDS], abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_export_loads_as_the_update_that_the_engines_received(policy, tmp_path, method):
    """An engine that joins late loads the export. Its receipt must have the fingerprints of the update itself."""
    learner = make_learner(policy, method=method, lora_rank=4)
    learner.step(LABELS, M0)
    learner.export(str(tmp_path))
    tensors, config = load_saved(str(tmp_path), method)
    assert fingerprints(tensors) == fingerprints(learner.weights())
    assert (config or {}).get("r") == (4 if method == "lora" else None)


def test_live_reference_equals_the_cached_one(policy):
    cached = make_learner(policy, method="lora", lora_rank=4)
    live = Learner(
        make_config(method="lora", lora_rank=4, train={"reference": "live"}), policy[0], None, TOKENIZED
    )  # fmt: skip
    for _ in range(3):
        a, b = cached.step(LABELS, M0, TEXTS), live.step(LABELS, M0, TEXTS)
    assert a["kl"] > 1e-4
    assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bfloat16_stays_close(policy, method, tmp_path):
    path = build_reference(policy[0], CASES, None, str(tmp_path), "bfloat16")
    config = make_config(method=method, lora_rank=4, train={"dtype": "bfloat16"})
    learner, exact = Learner(config, policy[0], path, TOKENIZED), make_learner(policy, method=method, lora_rank=4)
    a, b = learner.step(LABELS, M0), exact.step(LABELS, M0)
    assert a["cross_entropy"] == pytest.approx(b["cross_entropy"], rel=0.03)
    assert all(p.dtype == torch.float32 for p in learner.module.parameters() if p.requires_grad)
    assert all(tensor.dtype == torch.bfloat16 for tensor in learner.weights().values())


def test_activation_checkpointing(policy):
    plain, saving = make_learner(policy), make_learner(policy, train={"activation_checkpointing": "layers"})
    assert [plain.step(LABELS, M0) for _ in range(2)] == [saving.step(LABELS, M0) for _ in range(2)]
    lora = make_learner(policy, method="lora", lora_rank=4, train={"activation_checkpointing": "layers"})
    assert lora.step(LABELS, M0)["grad_norm"] > 0


def test_divergence_is_an_error_that_leaves_the_weights(policy):
    learner = make_learner(policy)
    with torch.no_grad():
        learner.module.causal_lm.model.norm.weight[0] = math.nan
    before = learner.weights()
    with pytest.raises(UserError, match=r"diverged.*learning_rate=0\.01"):
        learner.step(LABELS, M0)
    after = learner.weights()
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)


def test_a_step_without_labels_is_an_error(policy):
    with pytest.raises(UserError, match="without any label"):
        make_learner(policy).step([], M0)


def test_cache_mode_needs_a_reference(policy):
    with pytest.raises(UserError, match="reference"):
        Learner(make_config(), policy[0], None, TOKENIZED)
