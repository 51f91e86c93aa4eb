"""The loss and every gradient of a learner step equal those of separate padded forwards of x, x∖C and q + e.

For Qwen3, Llama and the organism, full training and LoRA, one process and two FSDP2 ranks with uneven shards. The step
packs its trees under a small token budget and uses the cached reference of another policy, so that the KL has a
gradient. Its gradients are read where the optimizer gets them.
"""

import pytest
import torch
import torch.nn.functional as F
from learner_helpers import make_cases, make_config, make_labels, make_model, make_pairs, organism_cases
from ranks import on_two_ranks

from introspect_ray.policy import BUNDLED, add_lora, load_model
from introspect_ray.training.fsdp import full_value
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

KINDS, METHODS = ("qwen3", "llama", "organism"), ("full", "lora")
SHARDS = (slice(0, 5), slice(5, 8))
KL_WEIGHT, RANK = 0.5, 4


def cases_of(kind):
    return organism_cases(8) if kind == "organism" else make_cases(8)


def config(method):
    train = {"token_budget": 120, "max_grad_norm": 1e9}  # several micro-batches; nothing is clipped
    return make_config(method=method, lora_rank=RANK, kl_weight=KL_WEIGHT, train=train)


@torch.no_grad()
def fill_lora(model):
    """Set B, which starts at zero, where A would have no gradient."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.05)


def step(kind, method, policy, reference, rank=0, world=1):
    """(loss, gradients by name) of one learner step on this rank's shard."""
    cases = cases_of(kind)
    shard = SHARDS[rank] if world > 1 else slice(None)
    tokenized = {case.case_id: case for case in cases}
    learner = Learner(config(method), policy, reference, tokenized, rank=rank, world_size=world)
    fill_lora(learner.module)
    gradients = {}

    def keep(optimizer, args, kwargs):
        for name, parameter in learner.module.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = full_value(parameter.grad).clone()

    learner.optimizer.register_step_pre_hook(keep)
    return learner.step(make_labels(cases)[shard], make_pairs(cases))["loss"], gradients


def padded_logits(model, sequences):
    """Logits [sequences, longest, V] of one batch, padded on the right, with the model's own causal mask."""
    longest = max(map(len, sequences))
    tokens = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    return model(input_ids=tokens, attention_mask=mask).logits


def behaviour_logprobs(model, cases):
    """Log-softmax [2B, V] at the last tokens of x, then of x∖C."""
    logprobs = []
    for sequences in ([case.prompt for case in cases], [case.ablated for case in cases]):
        last = torch.tensor([len(s) - 1 for s in sequences])
        logprobs.append(padded_logits(model, sequences)[torch.arange(len(sequences)), last].log_softmax(-1))
    return torch.cat(logprobs)


def padded_forwards(kind, method, policy, reference_policy):
    """(loss, gradients) of the mean CE over target tokens + λ · the mean KL(M0 || M) over behaviour positions."""
    cases = cases_of(kind)
    model = load_model(policy, torch.float32)
    if method == "lora":
        model = add_lora(model, RANK, seed=0)
        fill_lora(model)
    with torch.no_grad():
        m0 = behaviour_logprobs(load_model(reference_policy, torch.float32), cases)
    targets = [case.explanations[label.explanation] for case, label in zip(cases, make_labels(cases), strict=True)]
    logits = padded_logits(model, [case.question + e for case, e in zip(cases, targets, strict=True)])
    ce = 0.0
    for row, case, e in zip(logits, cases, targets, strict=True):
        first = len(case.question) - 1
        ce = ce + F.cross_entropy(row[first : first + len(e)], torch.tensor(e), reduction="sum")
    kl = (m0.exp() * (m0 - behaviour_logprobs(model, cases))).sum()
    loss = ce / sum(map(len, targets)) + KL_WEIGHT * kl / (2 * len(cases))
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def steps(rank, policies, references):
    """What `step` returns for every kind and method, on one rank of two."""
    return {(k, m): step(k, m, policies[k][0], references[k], rank, 2) for k in KINDS for m in METHODS}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """(policy, another policy as M0) for each kind."""
    folder = tmp_path_factory.mktemp("gradients")
    made = {"organism": (str(BUNDLED["organism"]), str(BUNDLED["organism:second"]))}
    for kind in ("qwen3", "llama"):
        paths = f"{folder}/{kind}", f"{folder}/{kind}-reference"
        model = make_model(kind)
        model.save_pretrained(paths[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.8)
        model.save_pretrained(paths[1])
        made[kind] = paths
    return made


@pytest.fixture(scope="module")
def runs(policies, tmp_path_factory):
    """{world: {(kind, method): (loss, gradients)}}. For two ranks, rank 0's, after a check that rank 1 agrees."""
    folder = tmp_path_factory.mktemp("ranks")
    references = {k: build_reference(second, cases_of(k), str(folder)) for k, (_, second) in policies.items()}
    first, second = on_two_ranks(steps, folder, policies, references)
    for key, (loss, gradients) in first.items():
        assert second[key][0] == loss and all(torch.equal(second[key][1][n], g) for n, g in gradients.items())
    return {1: {(k, m): step(k, m, policies[k][0], references[k]) for k in KINDS for m in METHODS}, 2: first}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_equals_separate_padded_forwards(policies, runs, kind, method, world):
    loss, expected = padded_forwards(kind, method, *policies[kind])
    step_loss, gradients = runs[world][kind, method]
    assert step_loss == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == expected.keys() and len(gradients) > 10
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-4 * scale, msg=name)
