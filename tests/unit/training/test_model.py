"""One forward over packed trees equals separate forwards over x, x∖C and q + e: logits and gradients."""

import pytest
import torch
import torch.nn.functional as F
from learner_helpers import make_cases, make_labels, make_model

from introspect_ray.policy import add_lora
from introspect_ray.training.chunked_loss import Objective, ReferenceRows
from introspect_ray.training.loss import Counts, loss_scales
from introspect_ray.training.model import TreeModel
from introspect_ray.training.output_head import OutputHead
from introspect_ray.training.packing import pack
from introspect_ray.training.prompt_tree import ONE_TOKEN, build_tree

CASES = make_cases(7)
LABELS = make_labels(CASES)
REFERENCE = torch.log_softmax(torch.randn(2, len(CASES), 61, generator=torch.Generator().manual_seed(1)), -1)


def plain_loss(model):
    """The same loss from one sequence at a time, with the model's own causal mask."""
    ce, kl, tokens = 0.0, 0.0, 0
    for i, (case, label) in enumerate(zip(CASES, LABELS, strict=True)):
        e = case.explanations[label.explanation]
        logits = model(input_ids=torch.tensor([case.question + e])).logits[0]
        ce = ce + F.cross_entropy(logits[len(case.question) - 1 : -1], torch.tensor(e), reduction="sum")
        tokens += len(e)
        for side, sequence in enumerate((case.prompt, case.ablated)):
            logprobs = torch.log_softmax(model(input_ids=torch.tensor([sequence])).logits[0, -1], -1)
            kl = kl + (REFERENCE[side, i].exp() * (REFERENCE[side, i] - logprobs)).sum()
    return ce / tokens + 0.5 * kl / (2 * len(CASES))


def tree_loss(model, budget):
    """The loss over micro-batches of `budget` tokens; calls backward on each."""
    module, total = TreeModel(model), 0.0
    head = OutputHead(torch.eye(61), None, {})  # makes the reference's logprobs its hidden states
    trees = [build_tree(c, label.explanation, ONE_TOKEN) for c, label in zip(CASES, LABELS, strict=True)]
    row = {case.case_id: i for i, case in enumerate(CASES)}
    tokens = sum(len(t.targets) for t in trees)
    for batch in pack(trees, budget):
        rows = [row[tree.case_id] for tree in batch.trees]
        reference = ReferenceRows(REFERENCE[:, rows].flatten(0, 1), head)
        loss = module(batch, Objective(reference, loss_scales(Counts(len(trees), tokens, 2 * len(trees)), 0.5, 1))).loss
        loss.backward()
        total += loss.item()
    return total


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def policy(kind, tied, lora):
    model = make_model(kind, tied).train()
    if lora:
        model = add_lora(model, 4, seed=3)
        with torch.no_grad():  # B starts at zero, where A would have no gradient
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_tree_forward_equals_separate_forwards(kind, tied, lora):
    model = policy(kind, tied, lora)
    loss = plain_loss(model)
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    assert tree_loss(model, 10_000) == pytest.approx(loss.item(), rel=1e-5)
    found = gradients(model)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_micro_batches_give_the_gradient_of_one_batch():
    model = make_model().train()
    tree_loss(model, 10_000)
    expected = gradients(model)
    for budget in (1, 70):
        model.zero_grad()
        tree_loss(model, budget)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=f"{name} at {budget}")


def test_activation_checkpointing_changes_nothing():
    model = make_model().train()
    tree_loss(model, 10_000)
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tree_loss(model, 10_000)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0, msg=name)


def test_logit_softcap_is_applied():
    """Gemma 2 caps its final logits: tanh(z / c) * c."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=1.5, attn_logit_softcapping=None,
        initializer_range=0.5, attn_implementation="eager",
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    (batch,) = pack([build_tree(CASES[0], None, None)], 1000)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([CASES[0].prompt])).logits[0, -1]
        module = TreeModel(model)
        found = module.output_head.logits(module.hidden(batch))[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
