"""What vLLM needs on a CPU before it starts.

Only vllm_start.py may import this module, within a function, since it imports vLLM at the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm import ModelRegistry
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform


def prepare(architectures: Sequence[str]) -> None:
    """Settings of this process for an engine of these model classes on a CPU."""
    # enforce_eager does not reach the sampler: vLLM compiles its rank count with inductor. On a cold machine the
    # first logprobs would take seconds of a C++ compiler, and fail without g++.
    torch.compiler.set_stance("force_eager")
    # vLLM inspects a model class in a second Python process (15 s while its cache is cold), so that CUDA is not
    # initialised in this one. Without CUDA that is pointless; a class registered as an object is not inspected.
    for name in architectures:
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    platform: Any = type(current_platform)
    platform.get_punica_wrapper = classmethod(lambda _: f"{__name__}.{OneAdapter.__name__}")


class OneAdapter(PunicaWrapperCPU):
    """LoRA on a CPU where all tokens of a batch have the same adapter, as in every batch of ours.

    vLLM's own copies the adapter's matrices once per token before it multiplies (196 KB per token and matrix of a
    rank-32 adapter on 1,536 channels). One product for all tokens needs no copy. Mixed batches go vLLM's way.
    """

    _slot: int | None = None  # of the one adapter; -1: none; None: they differ

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        used = torch.cat([self.token_lora_indices, self.sampler_indices]).unique().tolist()
        self._slot = used[0] if len(used) == 1 else None

    def _apply_shrink(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        """y[tokens, rank] = scale * x[tokens, inputs] @ A^T, from w_t_all [adapters, 1, rank, inputs]."""
        if self._slot is None:
            super()._apply_shrink(y, x, w_t_all, scale)
        elif self._slot >= 0:
            shrink(y, x, w_t_all[self._slot, 0], scale)

    def _apply_expand(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        w_t_all: torch.Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        """y[tokens, y_offset :][:y_slice_size] += x[tokens, rank] @ B^T, from w_t_all [adapters, 1, outputs, rank]."""
        if self._slot is None or not add_inputs:
            super()._apply_expand(y, x, w_t_all, y_offset, y_slice_size, add_inputs)
        elif self._slot >= 0:
            expand(y[:, y_offset : y_offset + y_slice_size], x, w_t_all[self._slot, 0])

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """y[rows, vocabulary] += scale * x[rows, inputs] @ A^T @ B^T. An adapter without an output head has zeros."""
        if self._slot is None:
            super().add_lora_logits(y, x, lora_a_stacked, lora_b_stacked, scale, **kwargs)
        elif self._slot >= 0:
            buffer = torch.zeros(len(x), lora_b_stacked.shape[-1])
            shrink(buffer, x, lora_a_stacked[self._slot, 0], scale)
            expand(y, buffer, lora_b_stacked[self._slot, 0])


def shrink(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, scale: float) -> None:
    """y[tokens, :rank] = scale * x[tokens, inputs] @ a[rank, inputs]^T, in y's type."""
    y[:, : len(a)] = torch.mm(x.to(y.dtype), a.to(y.dtype).T).mul_(scale)


def expand(y: torch.Tensor, x: torch.Tensor, b: torch.Tensor) -> None:
    """y[tokens, outputs] += x[tokens, rank] @ b[outputs, rank]^T, in y's type; one of both may have more outputs."""
    common = min(y.shape[1], len(b))
    y[:, :common].addmm_(x.to(y.dtype), b[:common].to(y.dtype).T)
