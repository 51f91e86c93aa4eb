"""The output head in chunks of rows: the losses, their gradients and the logits that are read, chunk by chunk.

The logits of a chunk are computed, used for everything that needs them, turned into their gradient and dropped. So
memory holds a few matrices of one chunk, whatever the size of the batch and of the vocabulary. The gradient is computed
in the forward pass, since only the loss is ever differentiated.

Shape suffixes: N output rows (see PackedBatch), of which B are for the KL and D deciding; L label nodes, P (row, token)
pairs, H hidden size, V vocabulary.
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
    """M0 at the KL rows of a batch, in their order: its hidden states and its output head.

    head None: the head of the policy itself, which LoRA adapters leave unchanged.
    """

    hidden_BH: Tensor
    head: OutputHead | None


class Objective(NamedTuple):
    """What to train a batch towards, and with which scales."""

    reference: ReferenceRows
    scales: Scales


class TreeOutput(NamedTuple):
    """The result of a forward over packed trees. Only `loss` has a gradient; logits and logprobs are float32.

    Without an objective, the first four are 0.
    """

    loss: Tensor  # this micro-batch's part of the global loss
    cross_entropy: Tensor  # sum in nats, float32 scalar
    kl: Tensor  # sum in nats, float32 scalar
    auxiliary: Tensor  # sum of the cross-entropy in nats, float32 scalar
    label_logprobs_P: Tensor  # natural full-vocabulary logprobs at (label_rows_P, label_tokens_P)
    argmax_L: Tensor  # int64, the most likely token at each label node
    walk_P: Tensor  # logits at (walk_rows_P, walk_tokens_P)


def evaluate_rows(
    hidden_NH: Tensor, head: OutputHead, batch: PackedBatch, objective: Objective | None, *, in_place: bool = False
) -> TreeOutput:
    """Apply the output head to the output rows of `batch`, in chunks. Without an objective nothing is trained.

    in_place: the forward adds the weight's gradient to `weight_VH.grad` instead of returning it to autograd, which
    would need a second and a third matrix of that size. Only for a leaf that is not sharded; backward must be called,
    once.
    """
    behaviour, deciding = batch.sections.kl + batch.sections.labels, batch.sections.deciding
    trained_NH, deciding_DH = hidden_NH.split([len(hidden_NH) - deciding, deciding])
    cast = head.to(hidden_NH.dtype)
    with torch.no_grad():
        walk_P = _walk_logits(deciding_DH, cast, batch)
        if objective is None:
            return TreeOutput(*_ChunkedPass(trained_NH[:behaviour], cast, batch, None).results(), walk_P)
    inputs = (trained_NH, head.weight_VH, head.bias_V)
    loss, ce, kl, auxiliary, logprobs_P, argmax_L = _ChunkedLoss.apply(*inputs, cast, batch, objective, in_place)
    return TreeOutput(loss, ce, kl, auxiliary, logprobs_P, argmax_L, walk_P)


class _ChunkedLoss(torch.autograd.Function):
    """All fields of TreeOutput but the last as a function of hidden states, head weight and head bias."""

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
        device = hidden_NH.device
        self._targets, self._auxiliary = (
            torch.from_numpy(tokens).to(device) for tokens in (batch.targets_K, batch.auxiliary_A)
        )
        self._sums = [torch.zeros((), device=device) for _ in range(4)]  # loss, cross-entropy, KL, auxiliary
        self._logprobs = torch.empty(len(batch.label_rows_P), device=device)
        self._argmax = torch.empty(len(batch.label_rows_L), dtype=torch.int64, device=device)
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

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All fields of TreeOutput but the last."""
        loss, ce, kl, auxiliary = self._sums
        return loss, ce, kl, auxiliary, self._logprobs, self._argmax

    def _evaluate(self, rows: slice, trained: bool) -> Tensor | None:
        """Add the losses of some rows and read their logits; the gradient of the raw logits if they are trained."""
        raw = self._head.raw(self._hidden[rows])
        with torch.enable_grad():
            logits = scale_logits(raw.requires_grad_(trained), self._head.scaling)
            loss = self._add_loss(rows.start, logits) if self._objective is not None else None
        with torch.no_grad():
            self._read_labels(rows.start, logits)
        return torch.autograd.grad(loss, raw)[0] if trained and loss is not None else None

    def _add_loss(self, first: int, logits: Tensor) -> Tensor:
        """Add the losses of the rows from `first` on, and return their part of the loss."""
        assert self._objective is not None
        reference, scales = self._objective
        sections = self._batch.sections
        ends = np.cumsum([0, *sections[:4]])  # of the sections that are trained
        cuts = np.clip(ends, first, first + len(logits)) - first
        kl_rows, _, predictors, auxiliary = logits.split(np.diff(cuts).tolist())
        ce = explanation_loss(predictors, self._targets[max(0, first - ends[2]) :][: len(predictors)])
        with torch.no_grad():
            head = reference.head or self._head
            m0 = head.logits(reference.hidden_BH[first : first + len(kl_rows)]).float().log_softmax(-1)
        with torch.set_grad_enabled(bool(scales.kl) and torch.is_grad_enabled()):
            kl = kl_to_reference(m0, kl_rows)
        texts = torch.zeros_like(self._sums[0])
        if len(auxiliary):
            with torch.set_grad_enabled(bool(scales.auxiliary) and torch.is_grad_enabled()):
                texts = explanation_loss(auxiliary, self._auxiliary[max(0, first - ends[3]) :][: len(auxiliary)])
        loss = combine(ce, kl, texts, scales)
        for total, value in zip(self._sums, (loss, ce, kl, texts), strict=True):
            total += value.detach()
        return loss

    def _read_labels(self, first: int, logits: Tensor) -> None:
        """Keep the logprobs of the label nodes' children and their most likely tokens, of the rows from `first` on."""
        nodes, rows = _within(self._batch.label_rows_L, first, len(logits))
        if not len(nodes):
            return
        logits = logits.detach()
        if (np.diff(rows) == 1).all():  # a block, as with labels of one token: no copy
            read, place = logits[rows[0] : rows[-1] + 1].float(), np.arange(len(logits)) - rows[0]
        else:
            read, place = logits[torch.from_numpy(rows).to(logits.device)].float(), np.zeros(len(logits), np.int64)
            place[rows] = np.arange(len(rows))
        pairs, at = _within(self._batch.label_rows_P, first, len(logits))
        normaliser = read.logsumexp(-1, keepdim=True)
        logprobs = _at(read, place[at], self._batch.label_tokens_P[pairs]) - _at(normaliser, place[at], 0 * at)
        self._logprobs[torch.from_numpy(pairs).to(read.device)] = logprobs
        self._argmax[torch.from_numpy(nodes).to(read.device)] = read.argmax(-1)

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
        pairs, at = _within(batch.walk_rows_P, rows.start, len(logits))
        logits_P.append(_at(logits, at, batch.walk_tokens_P[pairs]))
    return torch.cat(logits_P)


def _chunks(rows: int, weight_VH: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS.get(weight_VH.device.type, CHUNK_ELEMENTS["cuda"]) // len(weight_VH))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _within(rows: np.ndarray, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `rows` lie in [first, first + count), and where there."""
    found = np.flatnonzero((rows >= first) & (rows < first + count))
    return found, rows[found] - first


def _at(logits_NV: Tensor, rows: np.ndarray, tokens: np.ndarray) -> Tensor:
    """logits_NV[rows, tokens]; both are int arrays of one length."""
    device = logits_NV.device
    return logits_NV[torch.from_numpy(rows).to(device), torch.from_numpy(tokens).to(device)]
