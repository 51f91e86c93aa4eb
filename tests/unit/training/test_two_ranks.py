"""Two FSDP2 ranks on gloo equal one process: the weights after three steps, and the pairs labelled before each step.

The shards of the three steps are even, uneven, and empty on one rank. Half of the cases have labels of several tokens.
"""

import os

import pytest
import torch
from learner_helpers import (
    make_cases,
    make_config,
    make_labels,
    make_model,
    make_pairs,
    make_texts,
    save_model,
    with_words,
)
from ranks import on_two_ranks

from introspect_ray.cases.probes import case_item
from introspect_ray.errors import UserError
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

CASES = [*make_cases(8)[:4], *map(with_words, make_cases(8)[4:])]
PROBE = (case_item(CASES[0]),)
TOKENIZED = {case.case_id: case for case in CASES}
LABELS = make_labels(CASES)
M0 = make_pairs(CASES)
TEXTS = make_texts(3)  # all on rank 0
SHARDS = ((slice(0, 4), slice(4, 8)), (slice(0, 7), slice(7, 8)), (slice(0, 8), slice(8, 8)))  # even, uneven, empty
ONE_PROCESS = {"offload": {"train": {"token_budget": 60}}}  # the variants that one process cannot run as they are
VARIANTS = {
    "full": {},
    "lora": {"method": "lora", "lora_rank": 4},
    "checkpointing": {"train": {"activation_checkpointing": "layers", "token_budget": 60}},
    "elementwise": {"train": {"activation_checkpointing": "elementwise", "token_budget": 60}},
    "offload": {"train": {"use_gpu": True, "offload": True, "token_budget": 60}},
    "full-bfloat16": {"train": {"dtype": "bfloat16"}},
    "lora-bfloat16-live": {"method": "lora", "lora_rank": 4, "train": {"dtype": "bfloat16", "reference": "live"}},
}
STEP_FIRST = "lora-bfloat16-live"  # trained once more without labelling before the first step, as with fixed labels


def config(changes):
    # A small learning rate, since Adam turns rounding noise in tiny gradients into steps of the size of the rate.
    return make_config(**{"learning_rate": 1e-3, **changes})


def policy_of(policies, name):
    """The policy in the variant's type: like those of a large policy, its weights are cast after sharding."""
    return policies["bfloat16" if "bfloat16" in name else "float32"]


def step_first(changes, policy, rank, world):
    learner = Learner(config(changes), policy, None, TOKENIZED, rank=rank, world_size=world, device="cpu")
    return learner.step(LABELS[SHARDS[0][rank]] if world > 1 else LABELS, M0)


def run_variant(changes, policy, reference, folder, rank, world):
    learner = Learner(config(changes), policy, reference, TOKENIZED, rank=rank, world_size=world, device="cpu")
    metrics, pairs = [], []
    for version, shards in enumerate(SHARDS):
        learner.probe(PROBE)  # a forward without backward must not leave stale weights behind
        pairs.append(learner.label_pairs(CASES[shards[rank]] if world > 1 else CASES, version))
        metrics.append(learner.step(LABELS[shards[rank]] if world > 1 else LABELS, M0, [] if rank else TEXTS))
    probe = learner.probe(PROBE)
    learner.save_checkpoint(f"{folder}/checkpoint-{world}").result()
    learner.export(f"{folder}/export-{world}")
    return metrics, probe, learner.weights(), pairs


def load_offloaded(policy, reference, folder, rank):
    """The weights loaded from the checkpoint, and those after one more step."""
    changes = {**VARIANTS["offload"], "seed": 9}
    learner = Learner(config(changes), policy, reference, TOKENIZED, rank=rank, world_size=2, device="cpu")
    learner.load_checkpoint(f"{folder}/checkpoint-2")
    loaded = learner.weights()
    learner.step(LABELS[SHARDS[0][rank]], M0)
    return loaded, learner.weights()


def run_variants(rank, policies, reference, folder):
    results = {}
    for name, changes in VARIANTS.items():
        path = reference["bfloat16" if "bfloat16" in name else "float32"]
        os.makedirs(f"{folder}/{name}", exist_ok=True)
        results[name] = run_variant(changes, policy_of(policies, name), path, f"{folder}/{name}", rank, 2)
    results["offload, loaded"] = load_offloaded(policies["float32"], reference["float32"], f"{folder}/offload", rank)
    results["step first"] = step_first(VARIANTS[STEP_FIRST], policies["bfloat16"], rank, 2)
    return results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    policies = {"float32": save_model(folder / "model"), "bfloat16": str(folder / "half")}
    make_model().to(torch.bfloat16).save_pretrained(policies["bfloat16"])
    reference = {d: build_reference(path, CASES, M0, str(folder / "cache"), d) for d, path in policies.items()}
    ranks = on_two_ranks(run_variants, folder, policies, reference, str(folder))
    return folder, policies, reference, ranks


def assert_same_pairs(one, two, version, tolerance):
    """The same cases and logprobs, and the same labels where the two best logprobs differ by more than rounding."""
    assert [pair.case_id for pair in two] == [case.case_id for case in CASES]
    for a, b in zip(one, two, strict=True):
        assert a.weight_version == b.weight_version == version
        for side in ("cued", "ablated"):
            ours, theirs = (getattr(pair, f"{side}_logprobs") for pair in (a, b))
            assert ours == pytest.approx(theirs, abs=tolerance)
            best, second = sorted(ours, reverse=True)[:2]
            if best - second > 2 * tolerance:
                assert getattr(a, side) == getattr(b, side)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_equal_one_process(runs, name, tmp_path):
    _, policies, reference, ranks = runs
    half = "bfloat16" in name
    path = reference["bfloat16" if half else "float32"]
    metrics, probe, weights, pairs = run_variant(
        ONE_PROCESS.get(name, VARIANTS[name]), policy_of(policies, name), path, str(tmp_path), 0, 1
    )
    (metrics_0, probe_0, weights_0, pairs_0), (metrics_1, probe_1, weights_1, pairs_1) = (rank[name] for rank in ranks)
    assert metrics_0 == metrics_1, "ranks report different global metrics"
    assert probe_0 == probe_1 and weights_1 is None
    rel = 0.05 if half else 1e-4
    for one, two in zip(metrics, metrics_0, strict=True):
        assert {k: one[k] for k in ("loss", "cross_entropy", "grad_norm")} == pytest.approx(
            {k: two[k] for k in ("loss", "cross_entropy", "grad_norm")}, rel=rel
        )
    for version, (one, first, second) in enumerate(zip(pairs, pairs_0, pairs_1, strict=True)):
        assert_same_pairs(one, [*first, *second], version, tolerance=0.2 if half else 1e-4)
    assert weights.keys() == weights_0.keys()
    if not half:
        assert metrics == [pytest.approx(two, rel=1e-4, abs=1e-5) for two in metrics_0]
        for key, tensor in weights.items():
            torch.testing.assert_close(weights_0[key], tensor, rtol=0, atol=1e-5, msg=key)
        assert probe == pytest.approx(probe_0, abs=1e-4)


def test_a_run_may_begin_with_a_step(runs):
    """Without labelling and probe before the first step, as with fixed labels."""
    _, policies, _, ranks = runs
    one = step_first(VARIANTS[STEP_FIRST], policies["bfloat16"], 0, 1)
    first, second = (rank["step first"] for rank in ranks)
    assert first == second and first["grad_norm"] > 0.01
    for key in ("loss", "cross_entropy", "grad_norm"):
        assert first[key] == pytest.approx(one[key], rel=0.05), key


def test_training_goes_on_from_an_offloaded_checkpoint(runs):
    """One more step, which needs the optimizer's state, equals that of one process without offloading."""
    folder, policies, reference, ranks = runs
    loaded, after = ranks[0]["offload, loaded"]
    learner = Learner(config(ONE_PROCESS["offload"]), policies["float32"], reference["float32"], TOKENIZED)
    learner.load_checkpoint(str(folder / "offload" / "checkpoint-2"))
    learner.step(LABELS, M0)
    expected = learner.weights()
    for key, tensor in ranks[0]["offload"][2].items():
        assert torch.equal(loaded[key], tensor), key
        torch.testing.assert_close(after[key], expected[key], rtol=0, atol=1e-5, msg=key)
    assert max((after[key] - loaded[key]).abs().max().item() for key in loaded) > 1e-4


def test_offload_without_sharding_is_refused(runs):
    _, policies, reference, _ = runs
    with pytest.raises(UserError, match="init_process_group"):
        Learner(config(VARIANTS["offload"]), policies["float32"], reference["float32"], TOKENIZED, device="cpu")


@pytest.mark.parametrize("name", ["full", "lora", "offload"])
def test_checkpoint_of_two_ranks_loads_in_one(runs, name):
    folder, policies, reference, ranks = runs
    learner = Learner(
        config({**ONE_PROCESS.get(name, VARIANTS[name]), "seed": 9}),
        policies["float32"],
        reference["float32"],
        TOKENIZED,
    )
    learner.load_checkpoint(str(folder / name / "checkpoint-2"))
    for key, tensor in learner.weights().items():
        assert torch.equal(tensor, ranks[0][name][2][key]), key
