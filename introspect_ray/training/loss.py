"""Logits -> loss: cross-entropy on the explanation plus λ times the KL to M0 (paper eq. 2), plus the cross-entropy on
auxiliary data (eq. 5). Pure.

Two normalisations of eq. 2. "token": the mean cross-entropy per target token and the mean KL per position of M0's
responses. "sequence", the equation read literally: the mean over cases of the summed -log p(e | q), and over prompts (x
and x∖C) of the summed KL. With explanations of n tokens and responses of one, λ under "token" weighs as much as n λ
under "sequence". The auxiliary term is a mean per token under both.

Shape suffixes: N positions, B behaviour positions, V vocabulary. All sums are in float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

Normalisation = Literal["token", "sequence"]


class Counts(NamedTuple):
    """What the sums of a batch are over."""

    cases: int = 0
    targets: int = 0  # tokens of explanations
    kl: int = 0  # positions of M0's responses to x and x∖C; 2 per case for labels of one token
    auxiliary: int = 0  # target tokens of auxiliary texts

    def divisors(self, normalisation: Normalisation) -> tuple[int, int]:
        """What the cross-entropy and the KL are divided by."""
        return (self.targets, self.kl) if normalisation == "token" else (self.cases, 2 * self.cases)


class Scales(NamedTuple):
    """How much one nat of each sum contributes to the loss of a micro-batch."""

    cross_entropy: float
    kl: float
    auxiliary: float = 0.0


def explanation_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Sum over positions of -log p(target), in nats; float32 scalar. 0 without positions."""
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")


def kl_to_reference(ref_logprobs_BV: Tensor, logits_BV: Tensor) -> Tensor:
    """Sum over positions of the forward KL(p_M0 || p_M) over the full vocabulary, in nats; float32 scalar.

    `ref_logprobs_BV` are normalised natural logs; `logits_BV` need not be normalised.
    """
    logprobs_BV = F.log_softmax(logits_BV.float(), dim=-1)
    return F.kl_div(logprobs_BV, ref_logprobs_BV.float(), reduction="sum", log_target=True)


def loss_scales(
    total: Counts,
    kl_weight: float,
    world_size: int,
    normalisation: Normalisation = "token",
    auxiliary_weight: float = 0.0,
) -> Scales:
    """Scales with which the micro-batches of all ranks add up to the loss of the global batch.

    `total` counts the *global* batch, so that accumulated micro-batches give the gradient of one big batch. The factor
    world_size is there because FSDP averages gradients over ranks.
    """
    ce, kl = total.divisors(normalisation)
    return Scales(
        world_size / max(ce, 1),
        world_size * kl_weight / max(kl, 1),
        world_size * auxiliary_weight / max(total.auxiliary, 1),
    )


def combine(ce_sum: Tensor, kl_sum: Tensor, auxiliary_sum: Tensor, scales: Scales) -> Tensor:
    """What these sums, of a micro-batch or a chunk of it, add to the loss of the global batch."""
    loss = scales.cross_entropy * ce_sum
    if scales.kl:  # 0 * inf would be NaN
        loss = loss + scales.kl * kl_sum
    return loss + scales.auxiliary * auxiliary_sum if scales.auxiliary else loss
