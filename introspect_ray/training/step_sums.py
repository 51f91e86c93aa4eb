"""What a training step adds up over micro-batches and ranks, and the metrics that follow from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from introspect_ray.records import BehaviorPair, Explanation
from introspect_ray.training.chunked_loss import TreeOutput
from introspect_ray.training.loss import Counts, Normalisation
from introspect_ray.training.packing import PackedBatch


@dataclass
class StepSums:
    """Sums over the cases of a step."""

    cross_entropy: float = 0.0  # nats, over target tokens
    kl: float = 0.0  # nats, over positions of M0's responses
    auxiliary: float = 0.0  # nats, over target tokens of auxiliary texts
    target_tokens: int = 0
    kl_positions: int = 0
    auxiliary_tokens: int = 0
    cases: int = 0
    readable: int = 0  # cases whose current behaviour a forward shows: all but free text
    explained_self: int = 0  # readable cases whose greedy explanation is that of the current behaviour
    explained_orig: int = 0  # cases whose greedy explanation is that of M0's behaviour
    same_behavior: int = 0  # readable cases with M0's labels on x and on x∖C
    same_cued: int = 0  # readable cases with M0's label on x
    same_ablated: int = 0  # readable cases with M0's label on x∖C
    realised: int = 0  # readable cases whose training label is the explanation of the current behaviour

    def add_losses(self, batch: PackedBatch, out: TreeOutput) -> None:
        """Add the losses of a micro-batch and what they are sums over."""
        self.cross_entropy += out.cross_entropy.item()
        self.kl += out.kl.item()
        self.auxiliary += out.auxiliary.item()
        self.target_tokens += len(batch.targets_K)
        self.kl_positions += batch.sections.kl
        self.auxiliary_tokens += len(batch.auxiliary_A)
        self.cases += len(batch.trees)

    def add_answers(
        self, label: Explanation | None, stated: Explanation, m0: BehaviorPair, now: tuple[str, str] | None
    ) -> None:
        """Add a case: its training label, the policy's greedy explanation, and what M0 and the policy answer.

        now: the labels on x and on x∖C, None for free text.
        """
        self.explained_orig += stated == m0.explanation
        if now is None:
            return
        current = Explanation(now[0] != now[1], now[1])
        self.readable += 1
        self.explained_self += stated == current
        self.same_behavior += now == (m0.cued, m0.ablated)
        self.same_cued += now[0] == m0.cued
        self.same_ablated += now[1] == m0.ablated
        self.realised += label == current

    def over_ranks(self, world_size: int, device: torch.device) -> StepSums:
        """The sums of the global batch. Collective."""
        if world_size == 1:
            return self
        values = torch.tensor(list(asdict(self).values()), dtype=torch.float64, device=device)
        dist.all_reduce(values)
        return StepSums(*values.tolist())

    def metrics(
        self, kl_weight: float, grad_norm: float, normalisation: Normalisation, auxiliary_weight: float
    ) -> dict[str, float | None]:
        """Loss, its parts and grad_norm, and shares of the cases (see Learner.step)."""
        counts = Counts(self.cases, self.target_tokens, self.kl_positions, self.auxiliary_tokens)
        ce_count, kl_count = counts.divisors(normalisation)
        ce, kl = self.cross_entropy / ce_count, self.kl / kl_count
        auxiliary = self.auxiliary / self.auxiliary_tokens if self.auxiliary_tokens else None
        loss = ce + kl_weight * kl if kl_weight else ce
        return {
            "loss": loss + auxiliary_weight * auxiliary if auxiliary_weight and auxiliary is not None else loss,
            "cross_entropy": ce,
            "kl": kl,
            "auxiliary": auxiliary,
            "grad_norm": grad_norm,
            "explanation_self": self._of_readable(self.explained_self),
            "explanation_orig": self.explained_orig / self.cases,
            "behavior_em": self._of_readable(self.same_behavior),
            "behavior_cued": self._of_readable(self.same_cued),
            "behavior_ablated": self._of_readable(self.same_ablated),
            "realised_at_consumption": self._of_readable(self.realised),
        }

    def _of_readable(self, count: int) -> float | None:
        return count / self.readable if self.readable else None
