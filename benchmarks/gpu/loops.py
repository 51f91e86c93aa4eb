"""The training loops that one would write with transformers alone, on the same cases, objective and cached M0.

padded: x, x∖C and q + e of the cases in plan order, in batches padded on the right. sorted: all sequences of a step
sorted by length, in batches of as many padded tokens as ours may have. unpadded: one sequence at a time. None of them
passes a mask: what is padded on the right is never seen by what is read. All compute logits only where they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.setting import Setting
from introspect_ray.policy import load_model
from introspect_ray.records import Label, TokenizedCase

How = Literal["padded", "sorted", "unpadded"]
HOWS: tuple[How, ...] = ("padded", "sorted", "unpadded")
ROWS = 8  # sequences of a padded batch
KL_WEIGHT, MAX_NORM = 1.0, 1.0


class Text(NamedTuple):
    """One sequence: from `first` on its tokens predict `targets`; without targets its last token answers, and the KL is
    taken there to row `reference` of M0's hidden states."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...] = ()
    reference: int = -1


class PlainLoop:
    """AdamW on float32 weights, autocast to bfloat16 where the setting says so."""

    def __init__(
        self, setting: Setting, how: How, policy: str, m0: str, cases: Sequence[TokenizedCase], dtype: str
    ) -> None:
        """m0: the policy of the KL, computed here once at x and x∖C of `cases`."""
        self._setting, self._how, self._half = setting, how, dtype == "bfloat16"
        compute = getattr(torch, dtype)
        reference = load_model(m0, compute).to(setting.device).eval()
        self._row = {case.case_id: 2 * i for i, case in enumerate(cases)}
        self._m0_head = reference.get_output_embeddings().weight.detach().clone()
        with torch.no_grad():
            ends = [self._hidden(reference, [p])[0, -1] for case in cases for p in (case.prompt, case.ablated)]
        self._m0_RH = torch.stack(ends)
        del reference
        self.model = load_model(policy, torch.float32).to(setting.device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)

    def step(self, cases: Sequence[TokenizedCase], labels: Sequence[Label]) -> float:
        """One optimizer step; the objective before it."""
        self._optimizer.zero_grad(set_to_none=False)
        loss = self.backward(cases, labels)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self._optimizer.step()
        return loss

    def backward(self, cases: Sequence[TokenizedCase], labels: Sequence[Label]) -> float:
        """Add the gradients of the objective of these cases; returns the objective."""
        explained = [case.explanations[label.explanation] for case, label in zip(cases, labels, strict=True)]
        every = [
            *(Text(case.prompt, reference=self._row[case.case_id]) for case in cases),
            *(Text(case.ablated, reference=self._row[case.case_id] + 1) for case in cases),
            *(Text(case.question + e[:-1], e) for case, e in zip(cases, explained, strict=True)),
        ]
        targets = sum(map(len, explained))
        total = torch.zeros((), device=self._setting.device)
        for part in self._batches(every):
            with torch.autocast(self._setting.device.type, torch.bfloat16, enabled=self._half):
                loss = self._loss(part, targets, 2 * len(cases))
            loss.backward()
            total += loss.detach()
        return total.item()

    def _batches(self, every: Sequence[Text]) -> Iterator[Sequence[Text]]:
        if self._how == "unpadded":
            yield from ([one] for one in every)
        elif self._how == "padded":
            yield from (every[start : start + ROWS] for start in range(0, len(every), ROWS))
        else:
            batch: list[Text] = []
            for one in sorted(every, key=lambda one: -len(one.tokens)):
                if batch and (len(batch) + 1) * len(batch[0].tokens) > self._setting.token_budget:
                    yield batch
                    batch = []
                batch.append(one)
            yield batch

    def _loss(self, part: Sequence[Text], targets: int, prompts: int) -> Tensor:
        """What these sequences add to the objective, of `targets` explanation tokens and `prompts` prompts in all."""
        hidden_RTH = self._hidden(self.model, [one.tokens for one in part])
        head = self.model.get_output_embeddings().weight
        answered = [(r, len(one.tokens) - 1) for r, one in enumerate(part) if not one.targets]
        spoken = [(r, len(s.tokens) - len(s.targets) + k) for r, s in enumerate(part) for k in range(len(s.targets))]
        logits = F.linear(hidden_RTH[tuple(torch.tensor(answered + spoken, device=head.device).T)], head).float()
        loss = logits.sum() * 0
        if answered:
            which = [one.reference for one in part if not one.targets]
            with torch.no_grad():
                m0 = F.linear(self._m0_RH[which], self._m0_head).float().log_softmax(-1)
            now = logits[: len(answered)].log_softmax(-1)
            loss = loss + KL_WEIGHT / prompts * F.kl_div(now, m0, reduction="sum", log_target=True)
        if spoken:
            wanted = torch.tensor([token for one in part for token in one.targets], device=head.device)
            loss = loss + F.cross_entropy(logits[len(answered) :], wanted, reduction="sum") / targets
        return loss

    def _hidden(self, model: torch.nn.Module, sequences: Sequence[tuple[int, ...]]) -> Tensor:
        width = max(map(len, sequences))
        tokens_RT = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences], device=self._setting.device)
        return model.get_decoder()(input_ids=tokens_RT, use_cache=False).last_hidden_state
