"""Every (layer, token) of every pair, patched: the normalised logit differences of behaviour and explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from introspect_ray.errors import UserError
from introspect_ray.patching.forward import decoder_layers, read_patched
from introspect_ray.patching.interventions import DIRECTIONS, Intervention, Interventions, interventions
from introspect_ray.patching.pairs import PromptPair, Region, Side

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Normalised logit differences (NLD, paper §3.3) of N pairs in both DIRECTIONS, per layer and token.

    NLD = (patched - base) / (donor - base): 0 where the patch has no effect, 1 where it gives what the donor says.
    The paper's formula calls the prompt that is patched "source" and the other one "target", its text the other way
    round; here they are base and donor, and a direction is written donor->base, as in its figures. NaN: this pair has
    no NLD here, because both prompts are alike up to this token, or have the same answer.
    """

    side: Side
    layers: tuple[int, ...]
    offsets: tuple[int, ...]  # tokens, counted from the end of what is patched: -1 is its last token
    behavior_NDLP: Floats
    explanation_NDLP: Floats
    behavior_gap_ND: Floats  # |donor - base| in nats; NaN where both have the same answer
    explanation_gap_ND: Floats

    def __len__(self) -> int:
        return len(self.behavior_NDLP)


def patch_grid(
    model: torch.nn.Module,
    pairs: Sequence[PromptPair],
    *,
    side: Side = "cued",
    region: Region = "prefix",
    layers: Sequence[int] | None = None,
    last: int | None = None,
    token_budget: int = 16384,
) -> Grid:
    """Patch every (layer, token) of each pair, in both directions, on the behaviour and on the explanation alike.

    side: "cued" reads y(x) (figures 3 and 15), "ablated" y(x∖C) (figure 16). region: of choose_pairs. layers:
    ascending; None: all but the last one, whose output at a token of the prefix reaches no later token. last: only that
    many last tokens. token_budget: most tokens of one forward pass. Raises UserError if there is nothing to patch or
    to read.
    """
    chosen = tuple(range(len(decoder_layers(model)) - 1) if layers is None else layers)
    planned = [[interventions(pair, direction, side, region, last) for direction in DIRECTIONS] for pair in pairs]
    width = min(len(both.explanation.base_at) for row in planned for both in row)
    if not width or not chosen:
        raise UserError(
            f"nothing to patch: {len(chosen)} layers, {width} tokens that the {side} prompt and its question share"
        )
    cells = [(n, d) for n, row in enumerate(planned) for d, both in enumerate(row) if both.behavior is not None]
    if not cells:
        raise UserError(f"in all {len(pairs)} pairs both prompts have the same {side} answer: give other cases")
    told = [_cut(planned[n][d], width) for n, d in cells]
    nlds, gaps = [], []
    for members in ([behavior for behavior, _ in told], [explanation for _, explanation in told]):
        nld, gap = (np.full((len(pairs), len(DIRECTIONS), *more), np.nan) for more in ((len(chosen), width), ()))
        where = tuple(np.array(cells).T)
        nld[where], gap[where] = _nld(model, members, chosen, token_budget)
        nlds.append(nld)
        gaps.append(gap)
    return Grid(side, chosen, tuple(range(-width, 0)), *nlds, *gaps)


def _cut(both: Interventions, width: int) -> tuple[Intervention, Intervention]:
    """Both interventions at the last `width` positions, which all pairs have."""
    behavior, explanation = both
    assert behavior is not None
    cut = [
        one._replace(base_at=one.base_at[-width:], donor_at=one.donor_at[-width:]) for one in (behavior, explanation)
    ]
    return cut[0], cut[1]


def _nld(
    model: torch.nn.Module, members: Sequence[Intervention], layers: Sequence[int], token_budget: int
) -> tuple[Floats, Floats]:
    """NLD [N, layers, positions], NaN where base and donor have the same activation, and |donor - base| [N]."""
    base, donor, patched = (tensor.numpy() for tensor in read_patched(model, members, layers, token_budget))
    gap = donor - base
    with np.errstate(divide="ignore", invalid="ignore"):
        nld = (patched - base[:, None, None]) / gap[:, None, None]
    differs = np.array([one.differs for one in members])
    return np.where(differs[:, None, :], nld, np.nan), np.abs(gap)
