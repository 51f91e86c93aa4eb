"""The loss against values derived by hand."""

import math

import pytest
import torch

from introspect_ray.training.loss import Counts, combine, explanation_loss, kl_to_reference, loss_scales

NOTHING = torch.tensor(0.0)


def test_kl_is_zero_when_the_policy_is_the_reference():
    logits = torch.tensor([[0.3, -1.0, 2.0], [5.0, 5.0, -5.0]])
    shifted = logits + 7  # a constant does not change the distribution
    assert kl_to_reference(torch.log_softmax(logits, -1), shifted).item() == pytest.approx(0, abs=1e-6)


def test_kl_by_hand():
    """p0 = (1/2, 1/4, 1/4), p = (1/4, 1/4, 1/2): KL(p0||p) = 1/2 ln 2 + 0 - 1/4 ln 2 = 1/4 ln 2.

    The reverse KL(p||p0) is -1/4 ln 2 + 1/2 ln 2, the same here, so a second row breaks the symmetry:
    p0 = (1/2, 1/2, 0+), p = (1/4, 1/4, 1/2): forward = ln 2; the reverse would be infinite.
    """
    reference = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 1e-30]]).log()
    logits = torch.tensor([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]]).log() + 3
    assert kl_to_reference(reference, logits).item() == pytest.approx(1.25 * math.log(2), rel=1e-6)


def test_cross_entropy_by_hand():
    """Logits (0, ln 3) give p = (1/4, 3/4); targets 0 and 1: ln 4 + ln 4/3."""
    logits = torch.tensor([[0.0, math.log(3)]] * 2)
    loss = explanation_loss(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(math.log(4) + math.log(4 / 3), rel=1e-6)


def test_combine_is_the_mean_over_the_global_batch():
    """Rank 1: CE sum 6 over 2 tokens, KL sum 4 over 2; rank 2: CE sum 2 over 6 tokens, KL sum 0 over 4.

    Global means: 8/8 and 4/6; with λ = 3 the loss is 1 + 2 = 3. A mean of rank means would give
    (3 + 1/3)/2 + 3 * (2 + 0)/2 = 4.67. FSDP averages ranks, so the parts must average to 3.
    """
    ranks = ((6.0, 4.0), (2.0, 0.0))
    scales = loss_scales(Counts(cases=3, targets=8, kl=6), kl_weight=3.0, world_size=2)
    assert scales == (2 / 8, 2 * 3 / 6, 0)
    parts = [combine(torch.tensor(ce), torch.tensor(kl), NOTHING, scales) for ce, kl in ranks]
    assert sum(part.item() for part in parts) / 2 == pytest.approx(3.0)


def test_the_sequence_normalisation_by_hand():
    """Two cases; CE sum 9 over 6 tokens, KL sum 8 over 5 positions, auxiliary sum 6 over 3 tokens; λ = 3, weight 2.

    token: 9/6 + 3 * 8/5 + 2 * 6/3 = 10.3; sequence: 9/2 + 3 * 8/(2 * 2) + 2 * 6/3 = 14.5.
    """
    counts, sums = Counts(cases=2, targets=6, kl=5, auxiliary=3), tuple(map(torch.tensor, (9.0, 8.0, 6.0)))
    losses = {how: combine(*sums, loss_scales(counts, 3.0, 1, how, 2.0)).item() for how in ("token", "sequence")}
    assert losses == pytest.approx({"token": 10.3, "sequence": 14.5})


def test_weight_zero_ignores_an_infinite_sum():
    scales = loss_scales(Counts(cases=1, targets=2, kl=2, auxiliary=2), kl_weight=0.0, world_size=1)
    infinite = torch.tensor(math.inf)
    assert combine(torch.tensor(4.0), infinite, infinite, scales).item() == 2.0
