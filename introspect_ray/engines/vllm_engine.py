"""VLLMEngine: one vLLM engine in this process, CPU or CUDA by the same code.

The constructor imports vLLM, after it has set the environment. A process can have one engine only: vLLM keeps
process-wide state (distributed groups, thread counts) that a second engine would inherit.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from introspect_ray.cases.answers import Tokens
from introspect_ray.config import RolloutConfig
from introspect_ray.engines import checks
from introspect_ray.engines.determinism import use_batch_invariance
from introspect_ray.engines.device_updates import DeviceUpdates
from introspect_ray.engines.protocol import PromptTokens, WeightUpdate

if TYPE_CHECKING:
    import torch

_BLOCK = 32  # tokens per KV block: with vLLM's CPU default of 128, short prompts never share a prefix
MAX_SEQUENCES = 256  # vLLM refuses a rollout.max_batched_tokens below this number
_CHUNK_BYTES = 1 << 30  # of a weight update: a worker in another process gets each chunk as one message


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


class VLLMEngine(DeviceUpdates):
    """The Engine protocol on vLLM.

    Every call starts with an empty prefix cache. So no answer can come from older weights, and a result depends on the
    weights and the prompts of the call only, not on earlier calls (a cached and a recomputed prefix differ in the last
    bits).
    """

    def __init__(
        self,
        policy_path: str,
        rollout: RolloutConfig,
        max_model_len: int,
        method: Literal["full", "lora"],
        lora_rank: int,
        seed: int,
        deterministic: bool = False,
    ) -> None:
        """Import vLLM and start its core in this process. Raises as VersionedEngine does."""
        super().__init__(policy_path, max_model_len, method, lora_rank)
        self._request = 0
        self._asleep = False
        self._prompt_tokens = self._cached_tokens = 0
        self._adapter: Any = None  # the LoRARequest now served
        self._adapters = 0  # how many were loaded so far
        self._adapter_dir: tempfile.TemporaryDirectory[str] | None = None
        set_environment(rollout.threads)
        self._shortfall = use_batch_invariance() if deterministic else None
        import torch

        torch.set_num_threads(rollout.threads)  # vLLM forbids this from here on
        self._engine = _start(
            self._engine_args(policy_path, rollout, seed), checks.architectures(policy_path), rollout.weight_transfer
        )
        self._engine.set_weight_version("0")

    def _engine_args(self, policy_path: str, rollout: RolloutConfig, seed: int) -> dict[str, Any]:
        from vllm.platforms import current_platform

        args: dict[str, Any] = {
            "model": policy_path,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # greedy answers must not depend on the sampling defaults of the folder
            "dtype": rollout.dtype,
            "seed": seed,
            "max_model_len": self._max_model_len,
            "max_num_seqs": MAX_SEQUENCES,
            "max_num_batched_tokens": rollout.max_batched_tokens,
            "enable_chunked_prefill": True,  # vLLM's own choice for decoders
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "async_scheduling": False,  # with one caller and short answers there is nothing to overlap
            "tensor_parallel_size": rollout.tensor_parallel_size,
        }
        if rollout.tensor_parallel_size > 1:
            # In an actor of a placement group vLLM would start a Ray actor per GPU, for which its bundle has no room.
            args |= {"distributed_executor_backend": "mp"}
        if rollout.weight_transfer == "ipc":
            args |= {"enable_sleep_mode": True}
        if current_platform.is_cpu():
            args |= {"enforce_eager": True, "block_size": _BLOCK, "kv_cache_memory_bytes": rollout.kv_cache_bytes}
        else:
            args |= {"gpu_memory_utilization": rollout.memory_share}
        if self._method == "lora":
            checks.check_vllm_limits((), self._lora_rank)
            rank = min(r for r in checks.VLLM_LORA_RANKS if r >= self._lora_rank)
            args |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 2}
        return args

    @property
    def prompt_tokens(self) -> PromptTokens:
        return PromptTokens(self._prompt_tokens, self._cached_tokens)

    def generate(self, prompts: Sequence[Tokens], max_tokens: int) -> list[Tokens]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._require_usable()
        checks.check_prompts(prompts, max_tokens, self._max_model_len)
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            stop_token_ids=list(self._eos),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        outputs = self._run(prompts, [params] * len(prompts))
        return [tuple(t for t in output.token_ids if t not in self._eos) for output in outputs]

    def rest(self) -> None:
        """Sleep: the weights go to the host's memory, and the KV cache is given up."""
        if not self._asleep:
            self._engine.sleep(level=1)
            self._asleep = True

    def _wake(self) -> None:
        if self._asleep:
            self._engine.wake_up()
            self._asleep = False

    def close(self) -> None:
        super().close()
        if self._engine is not None:
            self._engine.engine_core.shutdown()
        self._engine = None
        self._drop_adapter_dir()

    def _apply(self, update: WeightUpdate) -> None:
        """Send all weights through vLLM's weight-transfer API, or load a new adapter."""
        if update.kind == "full":
            self._load_full(dict(update.tensors))
        else:
            self._load_adapter(update)
        self._serve(update.version)

    def _serve(self, version: int) -> None:
        self._version = version
        self._engine.set_weight_version(str(version))

    def _call_workers(self, call: str, kwargs: dict[str, Any]) -> list[Any]:
        self._wake()
        return self._engine.collective_rpc(call, kwargs=kwargs)

    def _load_full(self, tensors: dict[str, torch.Tensor]) -> None:
        self._call_workers("start_weight_update", {})
        for chunk in _chunks(tensors):
            self._call_workers("update_weights", {"update_info": {"weights": chunk}})
        self._call_workers("finish_weight_update", {})

    def _load_adapter(self, update: WeightUpdate) -> None:
        """Write the adapter to a folder, the only source vLLM takes; it stays, since vLLM may read it again."""
        from safetensors.torch import save_file
        from vllm.lora.request import LoRARequest

        folder = tempfile.TemporaryDirectory(prefix="introspect-ray-adapter-")
        save_file(
            {n: t.detach().cpu().contiguous() for n, t in update.tensors.items()},
            f"{folder.name}/adapter_model.safetensors",
        )
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in (update.adapter_config or {}).items()}
        Path(folder.name, "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        # vLLM would keep the old adapter for an id that it knows, without a word: each delivery has a new name and id.
        self._adapters += 1
        request = LoRARequest(f"delivery-{self._adapters}-version-{update.version}", self._adapters, folder.name)
        if self._adapter is not None:
            self._engine.remove_lora(self._adapter.lora_int_id)
        if not self._engine.add_lora(request):
            raise RuntimeError(f"vLLM did not load the adapter of version {update.version}")
        self._drop_adapter_dir()
        self._adapter, self._adapter_dir = request, folder

    def _drop_adapter_dir(self) -> None:
        if self._adapter_dir is not None:
            self._adapter_dir.cleanup()
            self._adapter_dir = None

    def _next_tokens(self, prompts: Sequence[Tokens], asked: Sequence[Tokens]) -> list[checks.NextToken]:
        outputs = self._run(prompts, [_next_token(ids) for ids in asked])
        answers = []
        for output, ids in zip(outputs, asked, strict=True):
            logprobs = output.logprobs[0]  # of the tokens asked for and of the sampled one
            answers.append(checks.NextToken(tuple(logprobs[i].logprob for i in ids), output.token_ids[0]))
        return answers

    def _run(self, prompts: Sequence[Tokens], params: Sequence[Any]) -> list[Any]:
        """vLLM's completion output of each prompt, in order.

        Raises RuntimeError where an answer is missing or was not sampled on the version now served.
        """
        from vllm.inputs import tokens_input

        self._wake()
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not empty its prefix cache: requests are still running")
        first = self._request
        for prompt, param in zip(prompts, params, strict=True):
            self._engine.add_request(str(self._request), tokens_input(list(prompt)), param, lora_request=self._adapter)
            self._request += 1
        outputs: dict[int, Any] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                outputs[int(output.request_id) - first] = output.outputs[0]
                self._prompt_tokens += len(output.prompt_token_ids)
                self._cached_tokens += output.num_cached_tokens or 0
        spans = {span.version for output in outputs.values() for span in output.weight_versions}
        if prompts and (len(outputs) != len(prompts) or spans != {str(self._version)}):
            raise RuntimeError(
                f"vLLM answered {len(outputs)} of {len(prompts)} prompts, on the weight versions {sorted(spans)}; "
                f"expected all of them, on version {self._version}"
            )
        return [outputs[i] for i in range(len(prompts))]


@lru_cache(maxsize=4096)  # probes ask for other tokens each time
def _next_token(asked: Tokens) -> Any:
    """One greedy token over the full vocabulary, with the raw logprobs of `asked`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    checks.check_vllm_limits([asked])
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprob_token_ids=list(asked),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # vLLM's deep copy of each request takes a third of the labelling time
    )


def _start(args: dict[str, Any], architectures: Sequence[str], transfer: str) -> Any:
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


def _chunks(tensors: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """`tensors` in chunks of _CHUNK_BYTES, in order, so that the tensors of a layer mostly stay together."""
    chunk: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        chunk[name] = tensor
        size += tensor.numel() * tensor.element_size()
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk
