"""Loss and every gradient of a step equal those of separate padded forwards, by the book, for Qwen3, Llama and the
organism, all weights and LoRA, in one process and under FSDP2 on two gloo ranks with uneven shards.

The step is the learner's own: trees packed under a small budget, the cached reference of another policy (so that the
KL has a gradient), FSDP2's reduction. Its gradients are read where the optimizer gets them.
"""

from functools import cache
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from learner_helpers import make_cases, make_config, make_labels, make_model, make_pairs
from ranks import on_two_ranks

from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import TaskConfig
from introspect_ray.policy import BUNDLED, add_lora, load_model, load_tokenizer
from introspect_ray.tasks import load_cases
from introspect_ray.train.fsdp import full_value
from introspect_ray.train.learner import Learner
from introspect_ray.train.reference import build_reference

KINDS, METHODS = ("qwen3", "llama", "organism"), ("full", "lora")
SHARDS = (slice(0, 5), slice(5, 8))
KL_WEIGHT, RANK = 0.5, 4


@cache
def cases_of(kind):
    if kind != "organism":
        return make_cases(8)
    tokenizer = load_tokenizer(str(BUNDLED["organism"]))
    return [tokenize_case(case, tokenizer, "") for case in islice(load_cases(TaskConfig())[0], 8)]


def config(method):
    train = {"token_budget": 120, "max_grad_norm": 1e9}  # several micro-batches; nothing is clipped
    return make_config(method=method, lora_rank=RANK, kl_weight=KL_WEIGHT, train=train)


@torch.no_grad()
def fill_lora(model):
    """B starts at zero, which would hide A's gradient."""
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
    found = {}

    def keep(optimizer, args, kwargs):
        for name, parameter in learner.module.model.named_parameters():
            if parameter.grad is not None:
                found[name] = full_value(parameter.grad).clone()

    learner.optimizer.register_step_pre_hook(keep)
    return learner.step(make_labels(cases)[shard], make_pairs(cases))["loss"], found


def padded_logits(model, sequences):
    """Logits [sequences, longest, V] of one batch padded on the right, the model's own causal mask."""
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


def by_the_book(kind, method, policy, reference_policy):
    """(loss, gradients): mean CE over target tokens + λ · mean over behaviour positions of KL(M0 || M)."""
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
    """What `step` gives of every kind and method, on one rank of two."""
    return {(k, m): step(k, m, policies[k][0], references[k], rank, 2) for k in KINDS for m in METHODS}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """(policy, another one as M0) of each kind."""
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
    """{world: {(kind, method): (loss, gradients)}}; of two ranks rank 0's, after a check that rank 1 has the same."""
    folder = tmp_path_factory.mktemp("ranks")
    references = {k: build_reference(second, cases_of(k), str(folder)) for k, (_, second) in policies.items()}
    first, second = on_two_ranks(steps, folder, policies, references)
    for key, (loss, gradients) in first.items():
        assert second[key][0] == loss and all(torch.equal(second[key][1][n], g) for n, g in gradients.items())
    return {1: {(k, m): step(k, m, policies[k][0], references[k]) for k in KINDS for m in METHODS}, 2: first}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_separate_padded_forwards(policies, runs, kind, method, world):
    loss, expected = by_the_book(kind, method, *policies[kind])
    found_loss, found = runs[world][kind, method]
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * scale, msg=name)
