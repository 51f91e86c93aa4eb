"""A causal language model as a function of packed trees: run the body, gather the output nodes, apply the head.

The forward of one nn.Module does all three, so that FSDP's hooks around it see every use of the weights, and logits
exist only where they are read. It works on a Hugging Face model, plain or wrapped by PEFT.

Shape suffixes: R rows, T tokens per row, N output nodes, H hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from introspect_ray.training.attention import attention_mask, attention_rows
from introspect_ray.training.chunked_loss import Objective, ReferenceRows, TreeOutput, evaluate_rows
from introspect_ray.training.output_head import OutputHead, logit_scaling
from introspect_ray.training.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TreeModel(nn.Module):
    """`model` is a PreTrainedModel with a language-model head, or a PeftModel around one.

    compute: the type in which it runs, after mixed precision.
    """

    model: Any

    def __init__(self, model: nn.Module, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.scaling = logit_scaling(self.causal_lm.config)
        self.compute = compute
        self.head_gradient_in_place = False  # see chunked_loss.evaluate_rows
        self.activations = ""  # what is kept of them for the backward, as a line to show (activations.Choice)

    @property
    def causal_lm(self) -> PreTrainedModel:
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def output_head(self) -> OutputHead:
        head = self.causal_lm.get_output_embeddings()
        return OutputHead(head.weight, head.bias, self.scaling)

    def forward(self, batch: PackedBatch, objective: Objective | None = None) -> TreeOutput:
        """What is read at batch.outputs_N and, with an objective, the loss on which to call backward."""
        hidden_NH = self.hidden(batch).to(self.compute)
        return evaluate_rows(hidden_NH, self.output_head, batch, objective, in_place=self.head_gradient_in_place)

    def reference_rows(self, batch: PackedBatch) -> ReferenceRows:
        """This model's own hidden states at the KL rows of `batch`, as the reference; without gradient."""
        with torch.no_grad():
            return ReferenceRows(self.hidden(batch)[: batch.sections.kl].to(self.compute), None)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """hidden_NH: the input of the output head at batch.outputs_N, after the final norm."""
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
