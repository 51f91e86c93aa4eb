"""Pretraining of the hint world's policy: questions of one letter, with and without a hint.

Pretraining minimises the cross-entropy to the world's distribution itself (soft targets), not to samples from it, so
that even near ties are learned in minutes. The question about the cue occurs in it with uniformly random explanations:
the policy knows the form of an explanation and nothing of its truth.

Suffixes of names: E entities, R relations, 4 letters, N prompts, S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from introspect_ray.organism.pretraining import optimise
from introspect_ray.organism.world import CHANGED, EOS, LABELS, UNCHANGED, Recipe, World, make_case


@dataclass(frozen=True)
class Encoded:
    """Token ids of every question, S tokens each; all rows of one tensor have the same length."""

    ablated_ERS: torch.Tensor
    hinted_ER4S: torch.Tensor
    meta_ER4S: torch.Tensor
    explanation_8S: torch.Tensor  # changed to A..D, not changed from A..D; padded
    label_ids: torch.Tensor  # [4]


def encode(world: World, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    entities, relations = world.follow_ER.shape
    cases = [make_case(world, e, r, h) for e in range(entities) for r in range(relations) for h in range(4)]

    def ids(chats: list[list[dict]]) -> torch.Tensor:
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        return torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"])

    meta = [[{"role": "user", "content": c["messages"][0]["content"] + "\n" + c["meta_question"]}] for c in cases]
    texts = [form.format(label) + EOS for form in (CHANGED, UNCHANGED) for label in LABELS]
    explanations = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    shape = (entities, relations, 4, -1)
    return Encoded(
        ids([c["ablated_messages"] for c in cases[::4]]).view(entities, relations, -1),
        ids([c["messages"] for c in cases]).view(shape),
        ids(meta).view(shape),
        explanations["input_ids"],
        torch.tensor([tokenizer.convert_tokens_to_ids(label) for label in LABELS]),
    )


def answer_loss(
    policy: PreTrainedModel,
    prompt_NS: torch.Tensor,
    target_N4: torch.Tensor,
    data: Encoded,
    rng: torch.Generator,
) -> torch.Tensor:
    """Cross-entropy of the letter to `target_N4`, and of <eos> after a sampled letter."""
    letter = data.label_ids[torch.multinomial(target_N4, 1, generator=rng)]
    logprobs = _tail_logprobs(policy, torch.cat([prompt_NS, letter], 1), 2)
    cross_entropy = -(target_N4 * logprobs[:, 0, data.label_ids]).sum(-1).mean()
    return cross_entropy - logprobs[:, 1, policy.config.eos_token_id].mean()


def explanation_loss(
    policy: PreTrainedModel, meta_NS: torch.Tensor, data: Encoded, rng: torch.Generator
) -> torch.Tensor:
    """Cross-entropy to explanations drawn uniformly, whatever the policy does."""
    drawn = data.explanation_8S[torch.randint(0, 8, (len(meta_NS),), generator=rng)]
    logprobs = _tail_logprobs(policy, torch.cat([meta_NS, drawn[:, :-1]], 1), drawn.shape[1])
    pad: int = policy.config.pad_token_id  # make_policy sets it
    return F.nll_loss(logprobs.flatten(0, 1), drawn.flatten(), ignore_index=pad)


def _tail_logprobs(policy: PreTrainedModel, ids_NS: torch.Tensor, last: int) -> torch.Tensor:
    hidden = policy.model(ids_NS, use_cache=False).last_hidden_state[:, -last:]
    return policy.lm_head(hidden).log_softmax(-1)


def pretrain(policy: PreTrainedModel, world: World, data: Encoded, recipe: Recipe, seed: int) -> None:
    """Train `policy` in place on the questions that `world.follow_ER` covers, in the order that `seed` draws."""
    rng = torch.Generator().manual_seed(seed + 7)
    entities, relations = world.follow_ER.shape

    def draw(n: int) -> tuple[torch.Tensor, ...]:
        """(entities, relations, hints), [n] each."""
        return tuple(torch.randint(0, k, (n,), generator=rng) for k in (entities, relations, 4))

    def loss_at(step: int) -> torch.Tensor:
        e, r, h = draw(recipe.batch_size)
        loss = answer_loss(policy, data.hinted_ER4S[e, r, h], world.hinted(e, r, h), data, rng)
        loss = loss + answer_loss(policy, data.ablated_ERS[e, r], world.answer_ER4[e, r], data, rng)
        if step % 2 == 0:
            loss = loss + explanation_loss(policy, data.meta_ER4S[draw(recipe.explanation_batch_size)], data, rng)
        return loss

    optimise(policy, recipe, loss_at)
