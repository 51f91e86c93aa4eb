"""The loss and every gradient of a learner step equal those of separate padded forwards of x, x∖C and q + e.

For Qwen3, Llama and the organism, full training and LoRA, one process and two FSDP2 ranks with uneven shards. With
"responses", letters, words and free text are in one batch, with auxiliary texts on one rank, and the losses are
normalised by sequence; otherwise all answers are letters. The step packs its trees under a small token budget and uses
the cached reference of another policy ("live": the adapters off), so that the KL has a gradient. Its gradients are read
where the optimizer gets them.
"""

import pytest
import torch
import torch.nn.functional as F
from learner_helpers import (
    make_cases,
    make_config,
    make_labels,
    make_model,
    make_pairs,
    make_response_cases,
    make_texts,
    organism_cases,
)
from ranks import on_two_ranks

from introspect_ray.policy import BUNDLED, add_lora, load_model
from introspect_ray.training.fsdp import full_value
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

KINDS = ("qwen3", "llama", "organism", "qwen3 responses", "llama responses")
VARIANTS = [(k, m) for k in KINDS for m in ("full", "lora", *(["live"] if "responses" in k else []))]
SHARDS = (slice(0, 8), slice(8, 13))
TEXT_SHARDS = (slice(0, 5), slice(5, 5))  # all texts on one rank
KL_WEIGHT, AUXILIARY_WEIGHT, RANK = 0.5, 0.3, 4


def cases_of(kind):
    if "responses" in kind:
        return make_response_cases(13)
    return organism_cases(13) if kind == "organism" else make_cases(13)


def texts_of(kind):
    return make_texts(5) if "responses" in kind else []


def config(kind, method):
    train = {"token_budget": 120, "max_grad_norm": 1e9}  # several micro-batches; nothing is clipped
    changes = {"method": "full"} if method == "full" else {"method": "lora", "lora_rank": RANK}
    train |= {"reference": "live"} if method == "live" else {}
    changes |= {"loss_normalisation": "sequence"} if "responses" in kind else {}
    changes |= {"auxiliary": {"path": "given", "weight": AUXILIARY_WEIGHT}}
    return make_config(kl_weight=KL_WEIGHT, train=train, **changes)


@torch.no_grad()
def fill_lora(model):
    """Set B, which starts at zero, where A would have no gradient."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.05)


def step(kind, method, policy, reference, rank=0, world=1):
    """(loss, gradients by name) of one learner step on this rank's shard."""
    cases = cases_of(kind)
    shard, text_shard = (SHARDS[rank], TEXT_SHARDS[rank]) if world > 1 else (slice(None), slice(None))
    tokenized = {case.case_id: case for case in cases}
    learner = Learner(config(kind, method), policy, reference, tokenized, rank=rank, world_size=world)
    fill_lora(learner.module)
    gradients = {}

    def keep(optimizer, args, kwargs):
        for name, parameter in learner.module.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = full_value(parameter.grad).clone()

    learner.optimizer.register_step_pre_hook(keep)
    labels, texts = make_labels(cases)[shard], texts_of(kind)[text_shard]
    return learner.step(labels, make_pairs(cases), texts)["loss"], gradients


def padded_logits(model, sequences):
    """Logits [sequences, longest, V] of one batch, padded on the right, with the model's own causal mask."""
    longest = max(map(len, sequences))
    tokens = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    return model(input_ids=tokens, attention_mask=mask).logits


def predicted(case, label, response):
    """(tokens of M0's response that are in the sequence, how many of its predictions follow from them).

    A label is predicted token by token. Free text that was not cut at its 3 tokens ends with an end of turn.
    """
    if case.max_response:
        return response, len(response) + (len(response) < 3)
    tokens = case.label_tokens[case.labels.index(label)]
    return tokens, len(tokens)


def behaviour_logprobs(model, cases):
    """Log-softmax [B, V] at every prediction of M0's responses to x of all cases, then to x∖C of all cases."""
    pairs, sequences = make_pairs(cases), []
    for case in cases:
        pair = pairs[case.case_id]
        sequences.append((case.prompt, *predicted(case, pair.cued, pair.cued_response)))
    for case in cases:
        pair = pairs[case.case_id]
        sequences.append((case.ablated, *predicted(case, pair.ablated, pair.ablated_response)))
    logits = padded_logits(model, [prompt + response for prompt, response, _ in sequences])
    return torch.cat(
        [row[len(p) - 1 : len(p) - 1 + count] for row, (p, _, count) in zip(logits, sequences, strict=True)]
    ).log_softmax(-1)


def text_loss(model, texts):
    """(summed -log p of the target tokens, how many there are)"""
    logprobs = padded_logits(model, [text.tokens for text in texts]).log_softmax(-1)
    at = [(t, i) for t, text in enumerate(texts) for i, target in enumerate(text.targets) if target]
    return -sum(logprobs[t, i - 1, texts[t].tokens[i]] for t, i in at), len(at)


def padded_forwards(kind, method, policy, reference_policy):
    """(loss, gradients) of the mean CE + λ · the mean KL(M0 || M) + the weight of texts · their mean CE.

    Means are over tokens and positions, and under the sequence normalisation over cases and prompts.
    """
    cases, texts = cases_of(kind), texts_of(kind)
    model = load_model(policy, torch.float32)
    if method != "full":
        model = add_lora(model, RANK, seed=0)
        fill_lora(model)
    with torch.no_grad():
        m0 = behaviour_logprobs(load_model(policy if method == "live" else reference_policy, torch.float32), cases)
    targets = [case.explanations[label.explanation] for case, label in zip(cases, make_labels(cases), strict=True)]
    logits = padded_logits(model, [case.question + e for case, e in zip(cases, targets, strict=True)])
    ce = 0.0
    for row, case, e in zip(logits, cases, targets, strict=True):
        first = len(case.question) - 1
        ce = ce + F.cross_entropy(row[first : first + len(e)], torch.tensor(e), reduction="sum")
    kl = (m0.exp() * (m0 - behaviour_logprobs(model, cases))).sum()
    if "responses" in kind:
        text_ce, text_tokens = text_loss(model, texts)
        loss = ce / len(cases) + KL_WEIGHT * kl / (2 * len(cases)) + AUXILIARY_WEIGHT * text_ce / text_tokens
    else:
        loss = ce / sum(map(len, targets)) + KL_WEIGHT * kl / (2 * len(cases))
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def steps(rank, policies, references):
    """What `step` returns for every kind and method, on one rank of two."""
    return {(k, m): step(k, m, policies[k][0], references[k], rank, 2) for k, m in VARIANTS}


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
        made[kind] = made[f"{kind} responses"] = paths
    return made


@pytest.fixture(scope="module")
def runs(policies, tmp_path_factory):
    """{world: {(kind, method): (loss, gradients)}}. For two ranks, rank 0's, after a check that rank 1 agrees."""
    folder = tmp_path_factory.mktemp("ranks")
    references = {}
    for kind, (_, second) in policies.items():
        cases = cases_of(kind)
        references[kind] = build_reference(second, cases, make_pairs(cases), str(folder))
    first, second = on_two_ranks(steps, folder, policies, references)
    for key, (loss, gradients) in first.items():
        assert second[key][0] == loss and all(torch.equal(second[key][1][n], g) for n, g in gradients.items())
    return {1: {(k, m): step(k, m, policies[k][0], references[k]) for k, m in VARIANTS}, 2: first}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("kind", "method"), VARIANTS)
def test_a_step_equals_separate_padded_forwards(policies, runs, kind, method, world):
    loss, expected = padded_forwards(kind, method, *policies[kind])
    step_loss, gradients = runs[world][kind, method]
    assert step_loss == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == expected.keys() and len(gradients) > 10
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-4 * scale, msg=name)
