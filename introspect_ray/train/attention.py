"""Attention over packed trees: a token attends to itself and its ancestors, as a dense or as a block mask.

Token j is i itself or an ancestor of i exactly when j <= i < end[j] (prompt_tree.py), so both masks follow from
one integer a token and are exact. SDPA takes the dense one and computes every pair of a row; FlexAttention takes
the block mask and skips blocks of 128 x 128 pairs that nobody sees. It has no backward on a CPU.

Shape suffixes: R rows, T tokens a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

if TYPE_CHECKING:
    from introspect_ray.train.packing import PackedBatch

AskedAttention = Literal["auto", "sdpa", "flex"]  # train.attention
Implementation = Literal["sdpa", "flex_attention"]  # transformers' names

# FlexAttention is compiled for shapes as they come, and beyond a limit of 8 compilations torch goes on with a warning
# and the whole score matrix. Rows of one block would be cases of their own (of less than 128 tokens even another
# algorithm's), so a row has two at least; what remains is one row or several, with gradient or without, and the first
# shapes, taken as fixed: 8, which leaves no room below torch's limit.
FLEX_LEAST = 129
FLEX_COMPILATIONS = 16


def choose_attention(asked: AskedAttention, device: torch.device | str) -> Implementation:
    """The implementation on a device. auto: FlexAttention on a GPU, SDPA on a CPU."""
    if asked == "auto":
        asked = "sdpa" if torch.device(device).type == "cpu" else "flex"
    return "flex_attention" if asked == "flex" else "sdpa"


def attention_rows(batch: PackedBatch, implementation: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens_RT, positions_RT, end_RT) of a batch, for FlexAttention with rows of FLEX_LEAST tokens at least; the
    tokens added attend to themselves only."""
    rows, length = batch.tokens_RT.shape
    more = ((0, 0), (0, FLEX_LEAST - length))
    if implementation != "flex_attention" or length >= FLEX_LEAST:
        return batch.tokens_RT, batch.positions_RT, batch.end_RT
    alone = np.tile(np.arange(length + 1, FLEX_LEAST + 1), (rows, 1))
    return np.pad(batch.tokens_RT, more), np.pad(batch.positions_RT, more), np.hstack([batch.end_RT, alone])


def attention_mask(end_RT: Tensor, implementation: str, dtype: torch.dtype) -> Tensor | BlockMask:
    """What a transformers model with this attention implementation takes as attention_mask of shape [R, 1, T, T]."""
    return tree_block_mask(end_RT) if implementation == "flex_attention" else tree_mask(end_RT, dtype)


def tree_mask(end_RT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [R, 1, T, T]: 0 where a token (row) attends to a token (column): itself and its ancestors;
    -inf elsewhere. Additive since SDPA would convert a boolean one in every layer."""
    index_T = torch.arange(end_RT.shape[1], device=end_RT.device)
    seen = (index_T[:, None] < end_RT[:, None, :]) & (index_T[:, None] >= index_T[None, :])
    mask = torch.zeros(seen.shape, dtype=dtype, device=end_RT.device)
    return mask.masked_fill_(~seen, -torch.inf).unsqueeze(1)


def tree_block_mask(end_RT: Tensor) -> BlockMask:
    """The same as a block mask; T need not be a multiple of its block size."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FLEX_COMPILATIONS)
    rows, length = end_RT.shape

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end_RT[row, key])

    return create_block_mask(seen, rows, None, length, length, device=end_RT.device)
