"""Attention over packed trees: a token attends to itself and its ancestors, by a dense mask or a block mask.

Token j is i itself or an ancestor of i exactly when j <= i < end[j] (prompt_tree.py), so both masks follow from one
integer per token and are exact. SDPA takes the dense mask and computes every pair of tokens of a row. FlexAttention
takes the block mask and skips each block of 128 x 128 pairs in which no token attends to another; it has no backward
pass on a CPU.

Shape suffixes: R rows, T tokens per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

if TYPE_CHECKING:
    from introspect_ray.training.packing import PackedBatch

AttentionChoice = Literal["auto", "sdpa", "flex"]  # train.attention
AttentionImplementation = Literal["sdpa", "flex_attention"]  # transformers' names

# torch compiles FlexAttention for each new kind of shape. Beyond a limit, 8 by default, it warns and computes the whole
# score matrix instead. Rows of a single block would add kinds of their own (below 128 tokens even another algorithm),
# so a row has at least two blocks. What remains is one row or several, with or without gradient, and the very first
# shape, which torch takes as fixed: 8 kinds, which leaves no room below torch's limit.
FLEX_MIN_LENGTH = 129
FLEX_MAX_COMPILATIONS = 16


def choose_attention(choice: AttentionChoice, device: torch.device | str) -> AttentionImplementation:
    """The implementation to use on a device. auto: FlexAttention on a GPU, SDPA on a CPU."""
    if choice == "auto":
        choice = "sdpa" if torch.device(device).type == "cpu" else "flex"
    return "flex_attention" if choice == "flex" else "sdpa"


def attention_rows(batch: PackedBatch, implementation: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens_RT, positions_RT, end_RT) of a batch.

    For FlexAttention, rows shorter than FLEX_MIN_LENGTH are padded to it; a padding token attends to itself only.
    """
    rows, length = batch.tokens_RT.shape
    if implementation != "flex_attention" or length >= FLEX_MIN_LENGTH:
        return batch.tokens_RT, batch.positions_RT, batch.end_RT
    padding = ((0, 0), (0, FLEX_MIN_LENGTH - length))
    padding_ends = np.tile(np.arange(length + 1, FLEX_MIN_LENGTH + 1), (rows, 1))
    return (
        np.pad(batch.tokens_RT, padding),
        np.pad(batch.positions_RT, padding),
        np.hstack([batch.end_RT, padding_ends]),
    )


def attention_mask(end_RT: Tensor, implementation: str, dtype: torch.dtype) -> Tensor | BlockMask:
    """The attention_mask, of shape [R, 1, T, T], that a transformers model takes with this implementation."""
    return tree_block_mask(end_RT) if implementation == "flex_attention" else tree_mask(end_RT, dtype)


def tree_mask(end_RT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [R, 1, T, T]: 0 where the query token is the key token or its descendant, -inf elsewhere.

    It is additive because SDPA would convert a boolean mask in every layer.
    """
    index_T = torch.arange(end_RT.shape[1], device=end_RT.device)
    visible = (index_T[:, None] < end_RT[:, None, :]) & (index_T[:, None] >= index_T[None, :])
    mask = torch.zeros(visible.shape, dtype=dtype, device=end_RT.device)
    return mask.masked_fill_(~visible, -torch.inf).unsqueeze(1)


def tree_block_mask(end_RT: Tensor) -> BlockMask:
    """The mask of tree_mask as a block mask; T need not be a multiple of the block size."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FLEX_MAX_COMPILATIONS)
    rows, length = end_RT.shape

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end_RT[row, key])

    return create_block_mask(visible, rows, None, length, length, device=end_RT.device)
