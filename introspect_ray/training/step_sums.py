"""What a training step adds up over micro-batches and ranks, and the metrics that follow from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist


@dataclass
class StepSums:
    """Sums over the cases of a step."""

    cross_entropy: float = 0.0  # nats, over target tokens
    kl: float = 0.0  # nats, over behaviour positions
    target_tokens: int = 0
    cases: int = 0
    explained_self: int = 0  # cases whose greedy explanation is that of the current behaviour
    explained_orig: int = 0  # cases whose greedy explanation is that of M0's behaviour
    same_behavior: int = 0  # cases with M0's labels on x and on x∖C
    realised: int = 0  # cases whose training label is the explanation of the current behaviour

    def over_ranks(self, world_size: int, device: torch.device) -> StepSums:
        """The sums of the global batch. Collective."""
        if world_size == 1:
            return self
        values = torch.tensor(list(asdict(self).values()), dtype=torch.float64, device=device)
        dist.all_reduce(values)
        return StepSums(*values.tolist())

    def metrics(self, kl_weight: float, grad_norm: float) -> dict[str, float]:
        """Loss, its parts and grad_norm, and four shares of the cases (see Learner.step)."""
        ce, kl = self.cross_entropy / self.target_tokens, self.kl / (2 * self.cases)
        return {
            "loss": ce + kl_weight * kl if kl_weight else ce,
            "cross_entropy": ce,
            "kl": kl,
            "grad_norm": grad_norm,
            "explanation_self": self.explained_self / self.cases,
            "explanation_orig": self.explained_orig / self.cases,
            "behavior_em": self.same_behavior / self.cases,
            "realised_at_consumption": self.realised / self.cases,
        }
