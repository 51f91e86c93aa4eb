"""The output head in chunks of rows: losses, their gradients and what is read off, never all logits at once.

The logits of a chunk are made, used for everything they are needed for, turned into their gradient and
dropped, so memory holds a few matrices of one chunk whatever the batch and the vocabulary. The gradient is
computed in the forward, as the loss is the only thing anyone differentiates.

Shape suffixes: N output rows (2B behaviour rows, K target predictors, D deciding nodes; see PackedBatch),
P (row, token) pairs, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from introspect_ray.train.loss import Scales, combine, explanation_loss, kl_to_reference
from introspect_ray.train.output_head import OutputHead, scale_logits
from introspect_ray.train.packing import PackedBatch

# Logits of a chunk. On a GPU a step of the default batch is one chunk, on a CPU the memory counts.
CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}


class ReferenceRows(NamedTuple):
    """M0 at the behaviour rows of a batch: its hidden states [2B, H] (x of all trees, then x∖C) and its head.

    head None: the policy's own (adapters do not touch it).
    """

    hidden_2BH: Tensor
    head: OutputHead | None


class Objective(NamedTuple):
    """What to train a batch on."""

    reference: ReferenceRows
    scales: Scales


class TreeOutput(NamedTuple):
    """What a forward over packed trees returns; only `loss` has a gradient.

    loss: this micro-batch's part of the global loss; cross_entropy, kl: sums in nats (float32 scalars, 0 without an
    objective). label_logprobs_P: natural full-vocabulary logprobs at (label_rows, label_tokens); free_2B: likeliest
    token of each behaviour row; walk_P: logits at (walk_rows_P, walk_tokens_P). float32, int64.
    """

    loss: Tensor
    cross_entropy: Tensor
    kl: Tensor
    label_logprobs_P: Tensor
    free_2B: Tensor
    walk_P: Tensor


def evaluate(
    hidden_NH: Tensor, head: OutputHead, batch: PackedBatch, objective: Objective | None, *, in_place: bool = False
) -> TreeOutput:
    """Everything that is wanted of the output rows of `batch`, in chunks. Without an objective nothing is trained.

    in_place: add the weight's gradient to `weight_VH.grad` in this forward instead of returning it to autograd, which
    would need a second and a third matrix of that size. For a leaf that nobody shards; backward must follow, once.
    """
    behaviour, targets, walk = batch.sections
    trained_NH, deciding_DH = hidden_NH.split([behaviour + targets, walk])
    cast = head.to(hidden_NH.dtype)
    with torch.no_grad():
        walk_P = _walk(deciding_DH, cast, batch)
        if objective is None:
            return TreeOutput(*_Chunks(trained_NH[:behaviour], cast, batch, None).results(), walk_P)
    inputs = (trained_NH, head.weight_VH, head.bias_V)
    return TreeOutput(*_ChunkedLoss.apply(*inputs, cast, batch, objective, in_place), walk_P)


class _ChunkedLoss(torch.autograd.Function):
    """The first five fields of TreeOutput as a function of hidden states, head weight and bias."""

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
        wanted = ctx.needs_input_grad[:3]
        kept = weight_VH.grad if in_place else None
        done = _Chunks(hidden_NH, cast, batch, objective, wanted, kept)
        inputs = (hidden_NH, weight_VH, bias_V)
        gradients = [None if g is None else g.to(t.dtype) for g, t in zip(done.gradients, inputs, strict=True)]
        ctx.in_place = in_place and wanted[1]
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
                raise RuntimeError("the loss was scaled after the head's gradient had been added: scale the objective")
            gradients = [None if g is None else g.mul_(grad_loss) for g in gradients]
        return *gradients, None, None, None, None


class _Chunks:
    """One pass over the rows, chunk by chunk, on construction."""

    def __init__(
        self,
        hidden_NH: Tensor,
        head: OutputHead,
        batch: PackedBatch,
        objective: Objective | None,
        wanted: tuple[bool, bool, bool] = (False, False, False),
        weight_grad: Tensor | None = None,
    ) -> None:
        """wanted: gradients towards hidden states, weight, bias. weight_grad: to add the weight's to, in place."""
        self._hidden, self._batch, self._objective = hidden_NH, batch, objective
        self._head = head
        self._behaviour = batch.sections[0]
        self._targets = torch.from_numpy(batch.targets_K).to(hidden_NH.device)
        self._sums = [torch.zeros((), device=hidden_NH.device) for _ in range(3)]  # loss, cross-entropy, KL
        self._logprobs: list[Tensor] = []
        self._free: list[Tensor] = []
        slices = list(_slices(len(hidden_NH), head.weight_VH))
        # Several products into one low-precision sum would lose what one product keeps.
        self._sum_dtype = torch.float32 if len(slices) > 1 else None
        self.gradients: list[Tensor | None] = [None, weight_grad, None]
        if wanted[0]:
            self.gradients[0] = torch.empty_like(hidden_NH)
        for rows in slices:
            gradient = self._part(rows, trained=any(wanted))
            if gradient is not None:
                self._add_gradients(rows, gradient, wanted)
        if not slices:  # zeros, not None: the other ranks of a rank without cases reduce them all the same
            given = (hidden_NH, head.weight_VH, head.bias_V)
            self.gradients = [
                torch.zeros_like(t) if want and g is None else g
                for g, t, want in zip(self.gradients, given, wanted, strict=True)
            ]

    def results(self) -> tuple[Tensor, ...]:
        device = self._hidden.device
        logprobs = torch.cat(self._logprobs) if self._logprobs else torch.zeros(0, device=device)
        free = torch.cat(self._free) if self._free else torch.zeros(0, dtype=torch.int64, device=device)
        return *self._sums, logprobs, free

    def _part(self, rows: slice, trained: bool) -> Tensor | None:
        """Add the sums and read-offs of some rows; the gradient of the loss towards their raw logits, if trained."""
        raw = self._head.raw(self._hidden[rows])
        with torch.enable_grad():
            logits = scale_logits(raw.requires_grad_(trained), self._head.scaling)
            split = max(0, min(len(logits), self._behaviour - rows.start))
            behaviour, predictors = logits.split([split, len(logits) - split])
            loss = self._add_loss(rows.start, behaviour, predictors)
        if split:
            with torch.no_grad():
                self._read_off(rows.start, behaviour)
        return torch.autograd.grad(loss, raw)[0] if trained and loss is not None else None

    def _add_loss(self, first: int, behaviour: Tensor, predictors: Tensor) -> Tensor | None:
        if self._objective is None:
            return None
        reference, scales = self._objective
        at = max(0, first - self._behaviour)
        ce = explanation_loss(predictors, self._targets[at : at + len(predictors)])
        with torch.no_grad():
            head = reference.head or self._head
            wanted = head.logits(reference.hidden_2BH[first : first + len(behaviour)]).float().log_softmax(-1)
        with torch.set_grad_enabled(bool(scales.kl) and torch.is_grad_enabled()):
            kl = kl_to_reference(wanted, behaviour)
        loss = combine(ce, kl, scales)
        for total, value in zip(self._sums, (loss, ce, kl), strict=True):
            total += value.detach()
        return loss

    def _read_off(self, first: int, behaviour: Tensor) -> None:
        rows, tokens = _within(self._batch.label_rows, self._batch.label_tokens, first, len(behaviour))
        logits = behaviour.detach().float()
        normaliser = logits.logsumexp(-1, keepdim=True)
        self._logprobs.append(pick(logits, rows, tokens) - pick(normaliser, rows, np.zeros_like(rows)))
        self._free.append(logits.argmax(-1))

    def _add_gradients(self, rows: slice, gradient_NV: Tensor, wanted: tuple[bool, bool, bool]) -> None:
        hidden = self._hidden[rows]
        if wanted[0]:
            self.gradients[0][rows] = gradient_NV @ self._head.weight_VH  # type: ignore[index]
        if wanted[1]:
            self.gradients[1] = self._added(self.gradients[1], gradient_NV.T, hidden)
        if wanted[2]:
            bias = gradient_NV.sum(0, dtype=self._sum_dtype)
            self.gradients[2] = bias if self.gradients[2] is None else self.gradients[2].add_(bias)

    def _added(self, total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
        """total + left @ right, in place where the types allow."""
        if total is None:
            return (left @ right).to(self._sum_dtype or left.dtype)
        return total.addmm_(left, right) if total.dtype == left.dtype else total.add_(left @ right)


def _walk(deciding_DH: Tensor, head: OutputHead, batch: PackedBatch) -> Tensor:
    """Logits at the children of the deciding nodes."""
    found = [torch.zeros(0, device=deciding_DH.device)]
    for rows in _slices(len(deciding_DH), head.weight_VH):
        logits = head.logits(deciding_DH[rows]).float()
        found.append(pick(logits, *_within(batch.walk_rows_P, batch.walk_tokens_P, rows.start, len(logits))))
    return torch.cat(found)


def _slices(rows: int, weight_VH: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS.get(weight_VH.device.type, CHUNK_ELEMENTS["cuda"]) // len(weight_VH))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _within(rows: np.ndarray, tokens: np.ndarray, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The (row, token) pairs whose row is one of `count` from `first`, rows counted from there. `rows` ascends."""
    part = slice(*np.searchsorted(rows, [first, first + count]))
    return rows[part] - first, tokens[part]


def pick(logits_NV: Tensor, rows: np.ndarray, tokens: np.ndarray) -> Tensor:
    """logits_NV[rows, tokens], both int arrays of one length."""
    device = logits_NV.device
    return logits_NV[torch.from_numpy(rows).to(device), torch.from_numpy(tokens).to(device)]
