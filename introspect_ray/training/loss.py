"""Logits -> loss: cross-entropy on the explanation plus λ times the KL to M0 (paper eq. 2). Pure.

Shape suffixes: N positions, B behaviour positions, V vocabulary. All sums are in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Scales(NamedTuple):
    """How much one nat of each sum contributes to the loss of a micro-batch."""

    cross_entropy: float
    kl: float


def explanation_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Sum over positions of -log p(target), in nats; float32 scalar. 0 without positions."""
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")


def kl_to_reference(ref_logprobs_BV: Tensor, logits_BV: Tensor) -> Tensor:
    """Sum over positions of the forward KL(p_M0 || p_M) over the full vocabulary, in nats; float32 scalar.

    `ref_logprobs_BV` are normalised natural logs; `logits_BV` need not be normalised.
    """
    logprobs_BV = F.log_softmax(logits_BV.float(), dim=-1)
    return F.kl_div(logprobs_BV, ref_logprobs_BV.float(), reduction="sum", log_target=True)


def loss_scales(ce_count_global: int, kl_count_global: int, kl_weight: float, world_size: int) -> Scales:
    """Scales with which the micro-batches of all ranks add up to the loss of the global batch.

    Means are over the target tokens, and over the behaviour positions (x and x∖C, so 2 per case), of the *global*
    batch, so that accumulated micro-batches give the gradient of one big batch. The factor world_size is there because
    FSDP averages gradients over ranks.
    """
    return Scales(world_size / max(ce_count_global, 1), world_size * kl_weight / max(kl_count_global, 1))


def combine(ce_sum: Tensor, kl_sum: Tensor, scales: Scales) -> Tensor:
    """What these sums, of a micro-batch or a chunk of it, add to the loss of the global batch."""
    loss = scales.cross_entropy * ce_sum
    return loss + scales.kl * kl_sum if scales.kl else loss  # 0 * inf would be NaN
