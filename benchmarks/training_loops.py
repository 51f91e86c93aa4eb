"""The training loops that one would write with transformers, for train_step.py and step_baselines.py, and what each of
them computes. Not a benchmark of its own.

A step has three sequences per case: x and x∖C, where KL(M0 || M) is taken at the last token, and q + e, with
cross-entropy on e. A loop decides how they are batched:

    plain    x, x∖C and q + e of all cases padded to the longest, one forward each, logits everywhere
    sorted   all sequences of the step in order of length, padded in micro-batches of four
    single   one sequence at a time: no padding, and a causal kernel
    packed   sequences back to back in rows of at most 1,024 tokens, under a block-diagonal mask

All but `plain` compute logits only where they are read. M0 is `live` (a second model runs on x and x∖C) or `cached`
(its log-probabilities were kept). Each forward is followed by its backward, so that one graph at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from introspect_ray.planning.model_shape import ModelShape
from introspect_ray.records import Label, TokenizedCase
from introspect_ray.training.packing import PackedBatch

MICRO_BATCH = 4  # of the sorted loop: as fast as any for SmolLM2 on a CPU (of 4, 8 and 16, see rollouts.py)
PACKED_TOKENS = 1024
KINDS = ("plain", "sorted", "single", "packed")
LOOPS = tuple(f"{kind} {reference}" for kind in KINDS for reference in ("live", "cached"))
BACKWARD = 2  # a product's backward pass has two products of its size
ATTENTION_BACKWARD = 2.5  # attention's has five where its forward has two: the scores are computed again


@dataclass(frozen=True)
class Part:
    """One sequence of a step. The logits at its last `reads` tokens are read.

    targets: the tokens of e that they predict; () for x and x∖C, where M0's distribution is wanted. key: case id and
    side (0: x, 1: x∖C, 2: q + e).
    """

    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    key: tuple[str, int]

    @property
    def reads(self) -> int:
        return len(self.targets) or 1


def step_parts(cases: Sequence[TokenizedCase], labels: Sequence[Label]) -> list[Part]:
    """x of each case, then x∖C of each, then q + e of each, whose last token predicts nothing and is left out."""
    prompts = [Part(side, (), (c.case_id, s)) for s in (0, 1) for c in cases for side in [(c.prompt, c.ablated)[s]]]
    targets = [case.explanations[label.explanation] for case, label in zip(cases, labels, strict=True)]
    return prompts + [Part(c.question + e[:-1], e, (c.case_id, 2)) for c, e in zip(cases, targets, strict=True)]


def batches(kind: str, parts: Sequence[Part]) -> list[list[Part]]:
    """The sequences of each forward of a loop."""
    if kind == "single":
        return [[part] for part in parts]
    if kind == "plain":
        return [[part for part in parts if part.key[1] == side] for side in range(3)]
    ordered = sorted(parts, key=lambda part: len(part.tokens), reverse=True)
    if kind == "sorted":
        return [ordered[i : i + MICRO_BATCH] for i in range(0, len(ordered), MICRO_BATCH)]
    rows: list[list[Part]] = []
    for part in ordered:  # first fit, longest first
        fits = (row for row in rows if sum(len(p.tokens) for p in row) + len(part.tokens) <= PACKED_TOKENS)
        row = next(fits, None)
        rows.append([part]) if row is None else row.append(part)
    return rows


class Batch(NamedTuple):
    """Inputs of a forward, [rows, tokens], and the flat places of the logits that are read."""

    tokens: torch.Tensor
    mask: torch.Tensor | None  # int64 padding mask, or additive float mask [1, 1, tokens, tokens]; None: causal
    positions: torch.Tensor | None  # None: 0, 1, ...
    reads: torch.Tensor


def collate(kind: str, parts: Sequence[Part]) -> Batch:
    lengths = [len(part.tokens) for part in parts]
    if kind == "packed":
        ends = torch.tensor(lengths).cumsum(0).tolist()
        reads = [end - back for part, end in zip(parts, ends) for back in range(part.reads, 0, -1)]
        tokens = torch.tensor([[token for part in parts for token in part.tokens]])
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        allowed = torch.block_diag(*[torch.ones(n, n) for n in lengths]).tril() > 0
        mask = torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)[None, None]
        return Batch(tokens, mask if len(parts) > 1 else None, positions, torch.tensor(reads))
    width = max(lengths)
    tokens = torch.tensor([[*part.tokens, *[0] * (width - n)] for part, n in zip(parts, lengths)])
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    reads = [
        row * width + n - back
        for row, (part, n) in enumerate(zip(parts, lengths, strict=True))
        for back in range(part.reads, 0, -1)
    ]
    return Batch(tokens, None if min(lengths) == width else mask, None, torch.tensor(reads))


def read_logits(model: Any, kind: str, parts: Sequence[Part]) -> torch.Tensor:
    """Logits [reads, vocabulary] of the parts in order."""
    batch = collate(kind, parts)
    inputs = {"input_ids": batch.tokens, "attention_mask": batch.mask, "position_ids": batch.positions}
    if kind == "plain":
        return model(**inputs, use_cache=False).logits.flatten(0, 1)[batch.reads]
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    return model.lm_head(hidden.flatten(0, 1)[batch.reads])


@torch.no_grad()
def m0_logprobs(reference: Any, parts: Sequence[Part]) -> dict[tuple[str, int], torch.Tensor]:
    """What a cached reference keeps: log-probabilities [vocabulary] after x and x∖C, by key."""
    return {part.key: read_logits(reference, "single", [part])[0].log_softmax(-1) for part in parts if not part.targets}


def accumulate(
    model: Any, name: str, parts: Sequence[Part], kl_weight: float, reference: Any, cached: Mapping[Any, torch.Tensor]
) -> float:
    """Add the gradient of a step's objective by the loop `name`; returns the objective.

    It is the mean cross-entropy per target token plus kl_weight times the mean KL over x and x∖C of all cases.
    """
    kind, source = name.split()
    prompts = sum(not part.targets for part in parts)
    targets = sum(len(part.targets) for part in parts)
    total = 0.0
    for batch in batches(kind, parts):
        asked = [part for part in batch if not part.targets]
        wanted = torch.stack([cached[part.key] for part in asked]) if asked and source == "cached" else None
        if asked and source == "live":
            with torch.no_grad():
                wanted = read_logits(reference, kind, asked).log_softmax(-1)
        logprobs = read_logits(model, kind, batch).log_softmax(-1)
        rows = torch.tensor([not part.targets for part in batch for _ in range(part.reads)])
        loss = logprobs.new_zeros(())
        if wanted is not None:
            kl = F.kl_div(logprobs[rows], wanted, reduction="sum", log_target=True)
            loss = loss + kl_weight * kl / prompts
        if len(asked) < len(batch):
            tokens = torch.tensor([token for part in batch for token in part.targets])
            loss = loss + F.nll_loss(logprobs[~rows], tokens, reduction="sum") / targets
        loss.backward()
        total += loss.item()
    return total


def counted(name: str, parts: Sequence[Part], shape: ModelShape) -> float:
    """Multiply-adds of a step by the loop `name`: all products of its forwards and backwards, padding included."""
    kind, source = name.split()
    total = 0.0
    for batch in batches(kind, parts):
        total += _forward(kind, batch, shape, trained=True)
        asked = [part for part in batch if not part.targets]
        if asked and source == "live":
            total += _forward(kind, asked, shape, trained=False)
    return total


def _forward(kind: str, parts: Sequence[Part], shape: ModelShape, trained: bool) -> float:
    lengths = [len(part.tokens) for part in parts]
    rows, width = (1, sum(lengths)) if kind == "packed" else (len(parts), max(lengths))
    causal = len(parts) == 1 or (kind != "packed" and min(lengths) == width)  # no mask: a kernel skips the other half
    pairs = rows * (width * (width + 1) / 2 if causal else width**2)
    heads = rows * width if kind == "plain" else sum(part.reads for part in parts)
    return multiply_adds(shape, rows * width, pairs, heads, trained, heads)


def counted_ours(packed: Sequence[PackedBatch], shape: ModelShape) -> float:
    """The same of our step: packed trees, every pair of tokens of a row, the head where something is read, and M0's."""
    total = 0.0
    for batch in packed:
        rows, width = batch.tokens_RT.shape
        s = batch.sections
        read, trained = sum(s), s.kl + s.labels + s.targets + s.auxiliary  # rows of a chunk share one product
        total += multiply_adds(shape, rows * width, rows * width**2, read, True, trained) + s.kl * shape.head
    return total


def multiply_adds(
    shape: ModelShape, tokens: float, pairs: float, heads: float, trained: bool, trained_heads: float
) -> float:
    """Multiply-adds of one forward, with its backward if `trained`.

    pairs: of tokens, as the attention kernel computes them. heads: rows of logits, of which trained_heads have a
    gradient.
    """
    linear, attention = shape.matrices * tokens, 2 * shape.layers * shape.query * pairs
    forward = linear + attention + shape.head * heads
    backward = BACKWARD * (linear + shape.head * trained_heads) + ATTENTION_BACKWARD * attention
    return forward + trained * backward
