"""Starting vLLM: the environment that it reads when it is imported, and an engine whose core is in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def set_environment(threads: int) -> None:
    """Set what vLLM and OpenMP read when they are imported, so only the first call in a process has an effect."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # a second process would add 30 s to the start
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override rollout.kv_cache_bytes
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",  # a start prints a dozen warnings, none of which a user can act on
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)


def start(args: dict[str, Any], architectures: Sequence[str], transfer: str) -> Any:
    """Import vLLM and start an LLMEngine with its core in this process, ready for weight updates by `transfer`."""
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    from introspect_ray.engines import vllm_receiver

    backend = vllm_receiver.DEVICE_BACKENDS.get(transfer, vllm_receiver.BACKEND)
    if "enable_lora" not in args:
        args |= {
            "weight_transfer_config": WeightTransferConfig(backend=backend),
            "worker_extension_cls": f"{vllm_receiver.__name__}.{vllm_receiver.WorkerExtension.__name__}",
        }
    if current_platform.is_cpu():
        from introspect_ray.engines import vllm_cpu

        vllm_cpu.prepare(architectures)
    engine = LLMEngine.from_engine_args(EngineArgs(**args))
    if "enable_lora" not in args and backend == vllm_receiver.BACKEND:  # the other backends wait for the trainer
        engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
    return engine
