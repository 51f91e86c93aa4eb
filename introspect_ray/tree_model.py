"""A causal language model as a function of packed trees: body, gather the output nodes, output head.

One nn.Module whose forward does all three, so that FSDP's hooks around it see every use of the weights
and logits exist only where they are read. Works on a Hugging Face model, plain or wrapped by PEFT.

Shape suffixes: R rows, T tokens a row, N output nodes, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from introspect_ray.errors import UserError
from introspect_ray.prompt_tree import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TreeModel(nn.Module):
    """`model` is a PreTrainedModel with a language-model head, or a PeftModel around one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.scaling = logit_scaling(self.causal_lm.config)

    @property
    def causal_lm(self) -> PreTrainedModel:
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    def forward(self, batch: PackedBatch, *, hidden_only: bool = False) -> Tensor:
        """logits_NV at batch.outputs_N, or hidden_NH after the final norm (the output head's input)."""
        device = next(self.model.parameters()).device
        tokens_RT = torch.from_numpy(batch.tokens_RT).to(device)
        positions_RT = torch.from_numpy(batch.positions_RT).to(device)
        mask = tree_mask(torch.from_numpy(batch.end_RT).to(device))
        body = self.causal_lm.get_decoder()
        hidden_RTH = body(
            input_ids=tokens_RT, attention_mask=mask, position_ids=positions_RT, use_cache=False
        ).last_hidden_state
        outputs_N = torch.from_numpy(batch.outputs_N).to(device)
        hidden_NH = hidden_RTH.flatten(0, 1).index_select(0, outputs_N)
        if hidden_only:
            return hidden_NH
        return scale_logits(self.causal_lm.get_output_embeddings()(hidden_NH), self.scaling)


def tree_mask(end_RT: Tensor) -> Tensor:
    """Boolean [R, 1, T, T], True where a token (row) attends to a token (column): itself and its ancestors."""
    index_T = torch.arange(end_RT.shape[1], device=end_RT.device)
    below = index_T[:, None] < end_RT[:, None, :]
    return (below & (index_T[:, None] >= index_T[None, :])).unsqueeze(1)


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
