"""What `deterministic=true` asks of torch and of vLLM, and what a machine cannot give.

torch: operations that have a deterministic implementation use it. vLLM: its batch-invariant mode, in which an answer
does not depend on the prompts that are computed beside it. That mode (beta in vLLM 0.32) replaces CUDA kernels: it does
not exist on CPUs, nor on GPUs below compute capability 9.0. transformers has nothing like it.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"  # read by vLLM when its kernels are imported
CAPABILITY = (9, 0)  # vllm/envs.py of 0.32: "Requires NVIDIA GPU with compute capability >= 9.0"
_REMEDY = (
    "so the last bits of a logprob, and a label that is nearly a tie, depend on which cases are answered together: fix "
    "rollout.group_size"
)


def use_deterministic_algorithms() -> None:
    """Make torch do so in this process. Call it before the first work on a GPU.

    An operation without a deterministic implementation warns once and is used all the same (see `Shortfalls`).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS picks its algorithms by the free workspace
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads memory that it has not written
    torch.backends.cudnn.benchmark = False


def use_batch_invariance() -> str | None:
    """Set vLLM's mode for this process where its hardware has it, before vLLM's kernels are imported.

    Returns None, or why this machine has no such mode.
    """
    os.environ[BATCH_INVARIANT] = "1"
    from vllm.platforms import current_platform

    missing = batch_invariance_missing(current_platform.is_cuda(), current_platform.get_device_capability)
    if missing:
        os.environ[BATCH_INVARIANT] = "0"
    return missing


def batch_invariance_missing(cuda: bool, capability: Any) -> str | None:
    """Why a device has no batch-invariant mode, and what then holds; None if it has.

    capability: a function that gives the compute capability of a CUDA device, as (major, minor).
    """
    if not cuda:
        return f"vLLM's batch-invariant mode is for NVIDIA GPUs, and these engines have none, {_REMEDY}"
    major, minor = capability()
    if (major, minor) < CAPABILITY:
        return (
            f"vLLM's batch-invariant mode needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]}, and the engines' "
            f"GPUs have {major}.{minor}, {_REMEDY}"
        )
    return None


NOT_IN_TRANSFORMERS = f"transformers has no batch-invariant mode, {_REMEDY}"


class Shortfalls:
    """Notes the warnings of torch on operations that have no deterministic implementation, and passes all on."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._shown = warnings.showwarning
        warnings.showwarning = self._show

    def _show(self, message: Warning | str, *rest: Any, **more: Any) -> None:
        said = str(message).split("\n")[0]
        line = f"deterministic=true: {said}"
        if "deterministic" in said.lower() and line not in self.lines:
            self.lines.append(line)
        self._shown(message, *rest, **more)
