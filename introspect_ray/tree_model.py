"""A causal language model as a function of packed trees: body, gather the output nodes, output head.

One nn.Module whose forward does all three, so that FSDP's hooks around it see every use of the weights
and logits exist only where they are read. Works on a Hugging Face model, plain or wrapped by PEFT.

Shape suffixes: R rows, T tokens a row, N output nodes, B cases, K target tokens,
D deciding nodes, H hidden size, V vocabulary.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from introspect_ray.errors import UserError
from introspect_ray.prompt_tree import PackedBatch
from introspect_ray.tree_attention import attention_mask, attention_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LogprobPair = tuple[tuple[float, ...], tuple[float, ...]]  # natural label logprobs at x, at x∖C


class TreeLogits(NamedTuple):
    """What a forward returns: x then x∖C of all trees [2B, V], target predictors [K, V], deciding nodes [D, V]."""

    behaviour: Tensor
    predictors: Tensor
    walk: Tensor


class TreeModel(nn.Module):
    """`model` is a PreTrainedModel with a language-model head, or a PeftModel around one; `compute` is the
    type it runs in, after mixed precision."""

    def __init__(self, model: nn.Module, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.scaling = logit_scaling(self.causal_lm.config)
        self.compute = compute

    @property
    def causal_lm(self) -> PreTrainedModel:
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    def forward(self, batch: PackedBatch) -> TreeLogits:
        """Logits at batch.outputs_N, each part apart; the walk's without gradient."""
        count, targets, walk = batch.sections
        trained, read_off = self.hidden(batch).split([count + targets, walk])
        with torch.no_grad():
            walk_DV = self.output_head(read_off)
        # One product for both: each one's gradient is a matrix of the head's size.
        behaviour_2BV, predictors_KV = self.output_head(trained).split([count, targets])
        return TreeLogits(behaviour_2BV, predictors_KV, walk_DV)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """hidden_NH at batch.outputs_N after the final norm, the output head's input."""
        device = next(self.model.parameters()).device
        body = self.causal_lm.get_decoder()
        attention = body.config._attn_implementation
        tokens_RT, positions_RT, end_RT, outputs_N = (
            torch.from_numpy(array).to(device) for array in (*attention_rows(batch, attention), batch.outputs_N)
        )
        mask = attention_mask(end_RT, attention, self.compute)
        states = body(input_ids=tokens_RT, attention_mask=mask, position_ids=positions_RT, use_cache=False)
        hidden_RTH = states.last_hidden_state[:, : batch.tokens_RT.shape[1]]
        return hidden_RTH.flatten(0, 1).index_select(0, outputs_N)

    def output_head(self, hidden_NH: Tensor) -> Tensor:
        return scale_logits(self.causal_lm.get_output_embeddings()(hidden_NH), self.scaling)


def logit_scaling(config: Any) -> dict[str, float]:
    """What this architecture does to the output head's product: {"divide", "multiply", "softcap"}, if anything."""
    config = config.get_text_config()
    found = {
        "divide": getattr(config, "logits_scaling", None),  # Granite
        "multiply": getattr(config, "logit_scale", None),  # Cohere
        "softcap": getattr(config, "final_logit_softcapping", None),  # Gemma 2
    }
    return {name: float(value) for name, value in found.items() if value}


def scale_logits(logits: Tensor, scaling: dict[str, float]) -> Tensor:
    """Apply `logit_scaling`; the shape is kept."""
    if "divide" in scaling:
        logits = logits / scaling["divide"]
    if "multiply" in scaling:
        logits = logits * scaling["multiply"]
    if "softcap" in scaling:
        logits = torch.tanh(logits / scaling["softcap"]) * scaling["softcap"]
    return logits


def check_window(config: Any, longest: int) -> None:
    """Refuse a prompt longer than the model's sliding window: the tree mask has no window.

    Raises UserError with both lengths.
    """
    config = config.get_text_config()
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if window and longest > window and (sliding or getattr(config, "use_sliding_window", True)):
        raise UserError(
            f"the longest sequence has {longest} tokens, more than the policy's attention window of {window}: "
            "take shorter cases or a policy with full attention"
        )


def label_logprobs(batch: PackedBatch, behaviour_logits: Tensor) -> list[LogprobPair]:
    """Each tree's full-vocabulary log-softmax at its label tokens: (at x, at x∖C), in the order of `labels`.

    behaviour_logits: [2B, V], x of all trees and then x∖C.
    """
    count = len(batch.trees)
    normaliser = behaviour_logits.float().logsumexp(-1)[torch.from_numpy(batch.label_rows).to(behaviour_logits.device)]
    flat = iter((pick(behaviour_logits, batch.label_rows, batch.label_tokens).float() - normaliser).tolist())
    sides = [tuple(islice(flat, len(tree.label_ids))) for tree in batch.trees * 2]
    return list(zip(sides[:count], sides[count:], strict=True))


def pick(logits_NV: Tensor, rows: np.ndarray, tokens: np.ndarray) -> Tensor:
    """logits_NV[rows, tokens], both int arrays of one length."""
    device = logits_NV.device
    return logits_NV[torch.from_numpy(rows).to(device), torch.from_numpy(tokens).to(device)]
