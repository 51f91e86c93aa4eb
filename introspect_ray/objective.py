"""Logits -> loss: cross-entropy on the explanation plus λ times the KL to M0 (paper eq. 2). Pure.

Shape suffixes: N positions, B behaviour positions, V vocabulary. Everything is reduced in float32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def explanation_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Sum over positions of -log p(target), in nats; float32 scalar. 0 for no positions."""
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")


def kl_to_reference(ref_logprobs_BV: Tensor, logits_BV: Tensor) -> Tensor:
    """Sum over positions of the forward KL(p_M0 || p_M) over the full vocabulary, in nats; float32 scalar.

    `ref_logprobs_BV` is normalised (natural logs), `logits_BV` need not be.
    """
    logprobs_BV = F.log_softmax(logits_BV.float(), dim=-1)
    return F.kl_div(logprobs_BV, ref_logprobs_BV.float(), reduction="sum", log_target=True)


def combine(
    ce_sum: Tensor,
    ce_count_global: int,
    kl_sum: Tensor,
    kl_count_global: int,
    kl_weight: float,
    world_size: int,
) -> Tensor:
    """This micro-batch's part of the global-batch loss, to call backward on.

    Means are over the valid tokens (behaviour positions: x and x∖C, so 2 a case) of the *global* batch,
    so that accumulating micro-batches gives the gradient of one big batch. FSDP averages gradients over
    ranks, hence the factor world_size.
    """
    ce = ce_sum / max(ce_count_global, 1)
    kl = kl_sum / max(kl_count_global, 1)
    loss = ce + kl_weight * kl if kl_weight else ce  # 0 * inf would be NaN
    return world_size * loss
