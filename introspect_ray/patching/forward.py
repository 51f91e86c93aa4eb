"""Forward passes of any Hugging Face causal language model with activations of another pass patched in.

An activation is the residual stream: the output of decoder layer l at token t. Sequences are padded on the right, which
changes nothing before the padding in a causal model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from introspect_ray.patching.interventions import Intervention


class Readings(NamedTuple):
    """Logit differences of N interventions, float64: without a patch, of the donor, and with each patch alone."""

    base_N: torch.Tensor
    donor_N: torch.Tensor
    patched_NLP: torch.Tensor  # by layer and patched position


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The decoder layers, whatever a model's family calls them. Raises ValueError if there is no such list."""
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {count} decoder layers")


@torch.inference_mode()
def read_patched(
    model: torch.nn.Module, interventions: Sequence[Intervention], layers: Sequence[int], token_budget: int
) -> Readings:
    """Every intervention at every (layer, position) alone. All have equally many positions.

    token_budget: most tokens of one forward pass, padding included (at least one sequence).
    """
    model.eval()
    count, width = len(interventions), len(interventions[0].base_at)
    base_N, donor_N = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
    patched_NLP = torch.zeros(count, len(layers), width, dtype=torch.float64)
    order = sorted(range(count), key=lambda row: len(interventions[row].base))
    for rows in _chunks(order, max(max(len(one.base), len(one.donor)) for one in interventions), token_budget):
        members = [interventions[row] for row in rows]
        donor_N[rows], states_LBPH = _record(model, members, layers)
        base_N[rows] = _read(model, members, [one.base for one in members])
        for index, layer in enumerate(layers):
            patched_NLP[rows, index] = _patch_each(model, members, layer, states_LBPH[index], token_budget)
    return Readings(base_N, donor_N, patched_NLP)


def _chunks(rows: Sequence[int], length: int, token_budget: int) -> Iterator[list[int]]:
    size = max(1, token_budget // length)
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def _record(
    model: torch.nn.Module, members: Sequence[Intervention], layers: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The donors' readings, and their activations [layers, B, positions, H]."""
    at_BP = torch.tensor([one.donor_at for one in members])
    rows_B1 = torch.arange(len(members))[:, None]
    kept: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _args: Any, output: Any) -> None:
        kept.append(_hidden(output)[rows_B1, at_BP])

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(decoder_layers(model)[layer].register_forward_hook(keep).remove)
        readings_B = _read(model, members, [one.donor for one in members])
    return readings_B, torch.stack(kept)  # layers run in ascending order, as they are given


def _patch_each(
    model: torch.nn.Module, members: Sequence[Intervention], layer: int, states_BPH: torch.Tensor, token_budget: int
) -> torch.Tensor:
    """Readings [B, positions] with one position patched at a time: a sequence per (member, position)."""
    count, width = states_BPH.shape[:2]
    cells = [(row, position) for row in range(count) for position in range(width)]
    out = torch.zeros(count * width, dtype=torch.float64)
    for part in _chunks(range(len(cells)), max(len(one.base) for one in members), token_budget):
        chosen = [cells[index] for index in part]
        copies = [members[row] for row, _ in chosen]
        at_B1 = torch.tensor([[members[row].base_at[position]] for row, position in chosen])
        states_B1H = states_BPH.flatten(0, 1)[part][:, None]
        with patched(model, layer, at_B1, states_B1H):
            out[part] = _read(model, copies, [one.base for one in copies])
    return out.view(count, width)


@contextmanager
def patched(model: torch.nn.Module, layer: int, at_BP: torch.Tensor, states_BPH: torch.Tensor) -> Iterator[None]:
    """Within the body, B sequences go on from `states_BPH` at positions `at_BP` of the layer's output."""
    rows_B1 = torch.arange(len(at_BP))[:, None]

    def replace(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        hidden_BTH = _hidden(output).clone()
        hidden_BTH[rows_B1, at_BP] = states_BPH
        return (hidden_BTH, *output[1:]) if isinstance(output, tuple) else hidden_BTH

    handle = decoder_layers(model)[layer].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _hidden(output: Any) -> torch.Tensor:
    """The residual stream in what a decoder layer returns: a tensor, in some families the first of a tuple."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _read(
    model: torch.nn.Module, members: Sequence[Intervention], sequences: Sequence[tuple[int, ...]]
) -> torch.Tensor:
    """The reading of each member, float64 [B], after the last token of its sequence."""
    device = next(model.parameters()).device
    longest = max(map(len, sequences))
    tokens_BT = torch.tensor([row + (0,) * (longest - len(row)) for row in sequences], device=device)
    ends, column_B = torch.tensor([len(row) - 1 for row in sequences]).unique(return_inverse=True)
    logits_BEV = model(input_ids=tokens_BT, use_cache=False, logits_to_keep=ends.to(device)).logits
    logits_BV = logits_BEV[torch.arange(len(sequences)), column_B].double().cpu()
    plus_B, minus_B = (_logsumexp(logits_BV, [getattr(one, name) for one in members]) for name in ("plus", "minus"))
    return plus_B - minus_B


def _logsumexp(logits_BV: torch.Tensor, tokens: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Over each row's own tokens: [B]."""
    width = max(map(len, tokens))
    ids_BW = torch.tensor([row + (-1,) * (width - len(row)) for row in tokens])
    chosen_BW = logits_BV.gather(1, ids_BW.clamp(min=0)).masked_fill(ids_BW < 0, -torch.inf)
    return chosen_BW.logsumexp(1)
