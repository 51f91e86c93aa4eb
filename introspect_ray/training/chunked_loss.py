"""The output head in chunks of rows: the losses, their gradients and the logits that are read, chunk by chunk.

The logits of a chunk are computed, used for everything that needs them, turned into their gradient and dropped. So
memory holds a few matrices of one chunk, whatever the size of the batch and of the vocabulary. The gradient is computed
in the forward pass, since only the loss is ever differentiated.

Shape suffixes: N output rows (2B behaviour rows, K target predictors, then the deciding rows D; see PackedBatch),
P (row, token) pairs, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from introspect_ray.training.loss import Scales, combine, explanation_loss, kl_to_reference
from introspect_ray.training.output_head import OutputHead, scale_logits
from introspect_ray.training.packing import PackedBatch

# Logits of one chunk. On a GPU, a step of the default batch size is one chunk; on a CPU, memory matters more.
CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}

NeedsGrad = tuple[bool, bool, bool]  # for hidden states, head weight, head bias


class ReferenceRows(NamedTuple):
    """M0 at the behaviour rows of a batch: its hidden states [2B, H] (x of all trees, then x∖C) and its output head.

    head None: the head of the policy itself, which LoRA adapters leave unchanged.
    """

    hidden_2BH: Tensor
    head: OutputHead | None


class Objective(NamedTuple):
    """What to train a batch towards, and with which scales."""

    reference: ReferenceRows
    scales: Scales


class TreeOutput(NamedTuple):
    """The result of a forward over packed trees. Only `loss` has a gradient; logits and logprobs are float32.

    Without an objective, loss, cross_entropy and kl are 0.
    """

    loss: Tensor  # this micro-batch's part of the global loss
    cross_entropy: Tensor  # sum in nats, float32 scalar
    kl: Tensor  # sum in nats, float32 scalar
    label_logprobs_P: Tensor  # natural full-vocabulary logprobs at (label_rows, label_tokens)
    argmax_2B: Tensor  # int64, the most likely token of each behaviour row
    walk_P: Tensor  # logits at (walk_rows_P, walk_tokens_P)


def evaluate_rows(
    hidden_NH: Tensor, head: OutputHead, batch: PackedBatch, objective: Objective | None, *, in_place: bool = False
) -> TreeOutput:
    """Apply the output head to the output rows of `batch`, in chunks. Without an objective nothing is trained.

    in_place: the forward adds the weight's gradient to `weight_VH.grad` instead of returning it to autograd, which
    would need a second and a third matrix of that size. Only for a leaf that is not sharded; backward must be called,
    once.
    """
    behaviour, targets, deciding = batch.sections
    trained_NH, deciding_DH = hidden_NH.split([behaviour + targets, deciding])
    cast = head.to(hidden_NH.dtype)
    with torch.no_grad():
        walk_P = _walk_logits(deciding_DH, cast, batch)
        if objective is None:
            return TreeOutput(*_ChunkedPass(trained_NH[:behaviour], cast, batch, None).results(), walk_P)
    inputs = (trained_NH, head.weight_VH, head.bias_V)
    loss, ce, kl, logprobs_P, argmax_2B = _ChunkedLoss.apply(*inputs, cast, batch, objective, in_place)
    return TreeOutput(loss, ce, kl, logprobs_P, argmax_2B, walk_P)


class _ChunkedLoss(torch.autograd.Function):
    """The first five fields of TreeOutput as a function of hidden states, head weight and head bias."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        cast: OutputHead,
        batch: PackedBatch,
        objective: Objective,
        in_place: bool,
    ) -> tuple[Tensor, ...]:
        """`cast`: weight and bias in the type of the hidden states."""
        needs_grad = ctx.needs_input_grad[:3]
        weight_grad = weight_VH.grad if in_place else None
        done = _ChunkedPass(hidden_NH, cast, batch, objective, needs_grad, weight_grad)
        inputs = (hidden_NH, weight_VH, bias_V)
        gradients = [
            None if g is None or t is None else g.to(t.dtype) for g, t in zip(done.gradients, inputs, strict=True)
        ]
        ctx.in_place = in_place and needs_grad[1]
        if ctx.in_place:
            weight_VH.grad, gradients[1] = gradients[1], None
        ctx.gradients = gradients
        loss, *rest = done.results()
        ctx.mark_non_differentiable(*rest)
        return loss, *rest

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if grad_loss.item() != 1:
            if ctx.in_place:
                raise RuntimeError(
                    "the loss was scaled after the gradient of the output head had been added: scale the objective"
                )
            gradients = [None if g is None else g.mul_(grad_loss) for g in gradients]
        return *gradients, None, None, None, None


class _ChunkedPass:
    """One pass over the rows, chunk by chunk; the constructor runs it."""

    def __init__(
        self,
        hidden_NH: Tensor,
        head: OutputHead,
        batch: PackedBatch,
        objective: Objective | None,
        needs_grad: NeedsGrad = (False, False, False),
        weight_grad: Tensor | None = None,
    ) -> None:
        """weight_grad: the gradient of the weight is added to it in place, if given."""
        self._hidden, self._batch, self._objective = hidden_NH, batch, objective
        self._head = head
        self._behaviour = batch.sections[0]
        self._targets = torch.from_numpy(batch.targets_K).to(hidden_NH.device)
        self._sums = [torch.zeros((), device=hidden_NH.device) for _ in range(3)]  # loss, cross-entropy, KL
        self._logprobs: list[Tensor] = []
        self._argmax: list[Tensor] = []
        chunks = list(_chunks(len(hidden_NH), head.weight_VH))
        # A low-precision sum of several products would lose bits that one product keeps.
        self._sum_dtype = torch.float32 if len(chunks) > 1 else None
        self.gradients: list[Tensor | None] = [None, weight_grad, None]
        if needs_grad[0]:
            self.gradients[0] = torch.empty_like(hidden_NH)
        for rows in chunks:
            gradient = self._evaluate(rows, trained=any(needs_grad))
            if gradient is not None:
                self._add_gradients(rows, gradient, needs_grad)
        if not chunks:  # zeros, not None: a rank without cases must still take part in the gradients' reduction
            inputs = (hidden_NH, head.weight_VH, head.bias_V)
            self.gradients = [
                torch.zeros_like(t) if needed and g is None and t is not None else g
                for g, t, needed in zip(self.gradients, inputs, needs_grad, strict=True)
            ]

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The first five fields of TreeOutput."""
        device = self._hidden.device
        logprobs = torch.cat(self._logprobs) if self._logprobs else torch.zeros(0, device=device)
        argmax = torch.cat(self._argmax) if self._argmax else torch.zeros(0, dtype=torch.int64, device=device)
        loss, ce, kl = self._sums
        return loss, ce, kl, logprobs, argmax

    def _evaluate(self, rows: slice, trained: bool) -> Tensor | None:
        """Add the losses of some rows and read their logits; the gradient of the raw logits if they are trained."""
        raw = self._head.raw(self._hidden[rows])
        with torch.enable_grad():
            logits = scale_logits(raw.requires_grad_(trained), self._head.scaling)
            split = max(0, min(len(logits), self._behaviour - rows.start))
            behaviour, predictors = logits.split([split, len(logits) - split])
            loss = self._add_loss(rows.start, behaviour, predictors)
        if split:
            with torch.no_grad():
                self._read_behaviour(rows.start, behaviour)
        return torch.autograd.grad(loss, raw)[0] if trained and loss is not None else None

    def _add_loss(self, first: int, behaviour: Tensor, predictors: Tensor) -> Tensor | None:
        if self._objective is None:
            return None
        reference, scales = self._objective
        at = max(0, first - self._behaviour)
        ce = explanation_loss(predictors, self._targets[at : at + len(predictors)])
        with torch.no_grad():
            head = reference.head or self._head
            m0 = head.logits(reference.hidden_2BH[first : first + len(behaviour)]).float().log_softmax(-1)
        with torch.set_grad_enabled(bool(scales.kl) and torch.is_grad_enabled()):
            kl = kl_to_reference(m0, behaviour)
        loss = combine(ce, kl, scales)
        for total, value in zip(self._sums, (loss, ce, kl), strict=True):
            total += value.detach()
        return loss

    def _read_behaviour(self, first: int, behaviour: Tensor) -> None:
        """Keep the label logprobs and the most likely tokens of behaviour rows."""
        rows, tokens = _pairs_within(self._batch.label_rows, self._batch.label_tokens, first, len(behaviour))
        logits = behaviour.detach().float()
        normaliser = logits.logsumexp(-1, keepdim=True)
        self._logprobs.append(_at(logits, rows, tokens) - _at(normaliser, rows, np.zeros_like(rows)))
        self._argmax.append(logits.argmax(-1))

    def _add_gradients(self, rows: slice, gradient_NV: Tensor, needs_grad: NeedsGrad) -> None:
        hidden = self._hidden[rows]
        if needs_grad[0]:
            self.gradients[0][rows] = gradient_NV @ self._head.weight_VH  # type: ignore[index]
        if needs_grad[1]:
            self.gradients[1] = self._add_product(self.gradients[1], gradient_NV.T, hidden)
        if needs_grad[2]:
            bias = gradient_NV.sum(0, dtype=self._sum_dtype)
            total = self.gradients[2]
            self.gradients[2] = bias if total is None else total.add_(bias)

    def _add_product(self, total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
        """total + left @ right, in place where the types allow it."""
        if total is None:
            return (left @ right).to(self._sum_dtype or left.dtype)
        return total.addmm_(left, right) if total.dtype == left.dtype else total.add_(left @ right)


def _walk_logits(deciding_DH: Tensor, head: OutputHead, batch: PackedBatch) -> Tensor:
    """Logits of the children of the deciding nodes."""
    logits_P = [torch.zeros(0, device=deciding_DH.device)]
    for rows in _chunks(len(deciding_DH), head.weight_VH):
        logits = head.logits(deciding_DH[rows]).float()
        logits_P.append(_at(logits, *_pairs_within(batch.walk_rows_P, batch.walk_tokens_P, rows.start, len(logits))))
    return torch.cat(logits_P)


def _chunks(rows: int, weight_VH: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS.get(weight_VH.device.type, CHUNK_ELEMENTS["cuda"]) // len(weight_VH))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _pairs_within(rows: np.ndarray, tokens: np.ndarray, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The (row, token) pairs with first <= row < first + count, rows counted from `first`. `rows` is ascending."""
    part = slice(*np.searchsorted(rows, [first, first + count]))
    return rows[part] - first, tokens[part]


def _at(logits_NV: Tensor, rows: np.ndarray, tokens: np.ndarray) -> Tensor:
    """logits_NV[rows, tokens]; both are int arrays of one length."""
    device = logits_NV.device
    return logits_NV[torch.from_numpy(rows).to(device), torch.from_numpy(tokens).to(device)]
