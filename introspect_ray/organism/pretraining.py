"""Pretraining that all kinds of organisms share: the policy, the optimiser's loop, and the loss of an answered prompt.

A kind is a world, its cases, and the batches it learns from. Those of the hint world are single letters
(hint_policy.py); the others are AnsweredPrompts: prompts, each with a distribution over a few written responses.
Explanations are among them, with the uniform distribution: the policy knows their form and nothing of their truth.

Suffixes of names: N prompts, B of a batch, S tokens of a prompt, R responses, T tokens of a response, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from introspect_ray.organism.world import EOS, Recipe

SLOT = -1  # in a response: the place of the prompt's own word
FAMILIES = ("qwen3", "llama", "qwen3-wide")  # paper fig. 14 varies the family
WIDER = 1.5  # qwen3-wide: so many times the width, and one layer more


def make_policy(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int, family: str = "qwen3"
) -> PreTrainedModel:
    """A policy with random weights drawn from `seed`. family: one of FAMILIES; qwen3-wide is wider and deeper."""
    torch.manual_seed(seed)
    wide = family == "qwen3-wide"
    scale = WIDER if wide else 1
    hidden = int(scale * recipe.hidden_size)
    heads = hidden // recipe.head_dim
    llama = family == "llama"
    config = (LlamaConfig if llama else Qwen3Config)(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=int(scale * recipe.intermediate_size),
        num_hidden_layers=recipe.layers + wide,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return (LlamaForCausalLM if llama else Qwen3ForCausalLM)(config)


def optimise(policy: PreTrainedModel, recipe: Recipe, loss_at: Callable[[int], torch.Tensor]) -> None:
    """`recipe.steps` updates of AdamW on loss_at(step): warm-up over 100 steps, then a cosine down to 2 %."""
    optimizer = torch.optim.AdamW(
        policy.parameters(), recipe.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay
    )
    start = time.monotonic()
    for step in range(recipe.steps):
        decay = 0.51 + 0.49 * math.cos(math.pi * step / recipe.steps)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1.0, (step + 1) / 100) * decay
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            print(f"step {step} loss {loss.item():.4f} {time.monotonic() - start:.0f} s", flush=True)


@dataclass(frozen=True)
class AnsweredPrompts:
    """N prompts and the distribution of each over R responses, which all of them share but for SLOT."""

    prompt_NS: torch.Tensor  # token ids, padded on the right
    length_N: torch.Tensor  # tokens of each prompt
    share_NR: torch.Tensor  # probability of each response; a row sums to 1
    slot_N: torch.Tensor  # the token that stands for SLOT
    response_RT: torch.Tensor  # token ids or SLOT, with <eos>, padded on the right

    def answers(self, rows_B: torch.Tensor) -> torch.Tensor:
        """[B, R, T]: the responses of these prompts, with their own word in the place of SLOT."""
        response = self.response_RT.expand(len(rows_B), -1, -1)
        return torch.where(response == SLOT, self.slot_N[rows_B, None, None], response)


def answered(
    tokenizer: PreTrainedTokenizerFast,
    chats: Sequence[list[dict]],
    responses: Sequence[str],
    share_NR: torch.Tensor,
    slots: Sequence[str] | None = None,
) -> AnsweredPrompts:
    """These chats as prompts. responses: texts; "{}" in one is the prompt's own word, slots[n]."""
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    pad: int = tokenizer.pad_token_id
    written = []
    for response in responses:
        pieces = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in (response + EOS).split("{}")]
        written.append([token for piece in pieces for token in (SLOT, *piece)][1:])
    words = tokenizer.convert_tokens_to_ids(list(slots)) if slots else [pad] * len(rows)
    return AnsweredPrompts(
        _padded(rows, pad),
        torch.tensor([len(row) for row in rows]),
        share_NR,
        torch.tensor(words),
        _padded(written, pad),
    )


def response_loss(
    policy: PreTrainedModel, prompts: AnsweredPrompts, rows_B: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    """Mean over prompts of the cross-entropy of a whole response, in nats.

    One response of each prompt is drawn. Each of its tokens has the world's own distribution of the next token as
    its target (all responses that agree with the drawn one so far count), so that near ties are learned exactly.
    """
    share_BR, answers_BRT = prompts.share_NR[rows_B], prompts.answers(rows_B)
    drawn_B = torch.multinomial(share_BR, 1, generator=rng)[:, 0]
    drawn_BT = answers_BRT[torch.arange(len(rows_B)), drawn_B]
    logprobs_BTV = _response_logprobs(policy, prompts.prompt_NS[rows_B], prompts.length_N[rows_B], drawn_BT)
    picked_BRT = logprobs_BTV.gather(2, answers_BRT.transpose(1, 2)).transpose(1, 2)
    agrees_BRT = (answers_BRT == drawn_BT[:, None]).cumprod(2)
    so_far_BRT = torch.cat([torch.ones_like(agrees_BRT[:, :, :1]), agrees_BRT[:, :, :-1]], 2)
    target_BRT = so_far_BRT * share_BR[:, :, None]
    target_BRT = target_BRT / target_BRT.sum(1, keepdim=True)
    written_BT = drawn_BT != policy.config.pad_token_id
    return -((target_BRT * picked_BRT).sum(1) * written_BT).sum(1).mean()


def _response_logprobs(
    policy: PreTrainedModel, prompt_BS: torch.Tensor, length_B: torch.Tensor, drawn_BT: torch.Tensor
) -> torch.Tensor:
    """[B, T, V]: log-probabilities of each token of the response, which is put right behind the prompt's last token.

    Padding on the right needs no mask: causal attention does not look there."""
    steps = torch.arange(drawn_BT.shape[1])
    room = torch.full_like(drawn_BT, policy.config.pad_token_id)
    ids = torch.cat([prompt_BS, room], 1).scatter(1, length_B[:, None] + steps, drawn_BT)
    hidden = policy.model(ids[:, :-1], use_cache=False).last_hidden_state
    at = (length_B[:, None] - 1 + steps)[..., None].expand(-1, -1, hidden.shape[-1])
    return policy.lm_head(hidden.gather(1, at)).log_softmax(-1)


def _padded(rows: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
