"""Everything a plan assumes, in one table: hardware, utilisation, host costs, tokens a case, price.

Numbers of a device are its data sheet's; nothing here was measured on a GPU unless the source says so.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from introspect_ray.errors import UserError

PREFIX = "assume."  # of overrides on the command line
_SHEET = "NVIDIA H100 SXM data sheet"
_MMLU = "mean of 12,361 cases (47 of MMLU's 57 test subjects), short wording, SmolLM2 tokenizer"


def _is(value: float, unit: str, source: str) -> Any:
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """One number a field, with its unit and source as metadata. `assume.<field>=...` replaces it."""

    peak_tflops: float = _is(989, "TFLOP/s", f"{_SHEET}: bfloat16, dense")
    peak_tflops_float32: float = _is(67, "TFLOP/s", f"{_SHEET}: float32 (train.dtype or rollout.dtype=float32)")
    hbm_tb_s: float = _is(3.35, "TB/s", f"{_SHEET}: HBM3")
    memory_gb: float = _is(80, "GB (1e9)", f"{_SHEET}; a driver shows 85, the rest is CUDA context, NCCL, fragments")
    nvlink_gb_s: float = _is(450, "GB/s a GPU, one way", f"{_SHEET}: NVLink 900 GB/s both ways")
    ib_gb_s: float = _is(
        50, "GB/s a GPU, one way", "one 400 Gb/s InfiniBand port a GPU (DGX H100; p5: 3,200 Gb/s of EFA)"
    )
    gpus_per_node: int = _is(8, "GPUs", "DGX H100, p5.48xlarge")
    link_efficiency: float = _is(0.75, "share of a link", "assumed")
    mfu_train: float = _is(0.40, "share of peak", "assumed, not measured: a usual value of FSDP on H100")
    mfu_prefill: float = _is(0.40, "share of peak", "assumed, not measured")
    host_s_per_layer: float = _is(
        8e-4, "s a layer and pass", "assumed: an eager forward of 32 layers takes about 25 ms"
    )
    request_s: float = _is(
        5e-4, "s a prompt", "LOG: vLLM does 128 pairs of the organism in 126-140 ms (CPU, model included)"
    )
    host_copy_gb_s: float = _is(6, "GB/s", "assumed: GPU to and from pageable host memory, PCIe 5")
    pinned_copy_gb_s: float = _is(40, "GB/s", "assumed: GPU to and from pinned host memory, PCIe 5 (64 GB/s one way)")
    host_memory_gb_s: float = _is(
        20, "GB/s a worker", "assumed: clipping and AdamW on a CPU (26 measured with one thread on 20 M parameters)"
    )
    store_gb_s: float = _is(2, "GB/s", "assumed: into Ray's object store and to another node over TCP")
    hash_gb_s: float = _is(6.6, "GB/s", "measured: fingerprints of 538 MB in 0.08 s, one core (benchmarks/sync.py)")
    prefix_block: int = _is(16, "tokens", "vLLM's default KV block on CUDA: only whole blocks are shared")
    kv_sequences: int = _is(256, "sequences", "engines/vllm_engine.py: the most that run at once")
    tree_tokens: float = _is(199.6, "tokens a case", f"{_MMLU}; ignored where cases are given")
    tree_tokens_squared: float = _is(49_725, "tokens² a case", "the same; its attention")
    prompt_tokens: float = _is(162.6, "tokens a case", "the same: x")
    ablated_tokens: float = _is(157.6, "tokens a case", "the same: x∖C")
    shared_tokens: float = _is(151.6, "tokens a case", "the same: common prefix of x and x∖C")
    question_tokens: float = _is(177.6, "tokens a case", "the same: q")
    target_tokens: float = _is(9, "tokens a case", "the same: e with its end of turn")
    branch_rows: float = _is(3, "rows a case", "the same: deciding nodes of the label trie")
    longest_tokens: int = _is(1_099, "tokens", "the same: longest q + e")
    longest_tree_tokens: int = _is(1_112, "tokens", "the same: longest tree")
    cases: int = _is(14_042, "cases", "MMLU's test questions on the hub, repeated ones (15 in 12,376) not taken out")
    startup_s: float = _is(120, "s a run", "assumed: processes, engine start; once in a sweep_lambda.py")
    trainer_startup_s: float = _is(60, "s a run", "assumed: Ray Train's workers, loading and sharding the policy")
    price: float = _is(
        6.88, "USD a GPU hour", "AWS p5.48xlarge on demand: 98.32 USD an hour less 44 % (June 2025), 8 GPUs"
    )

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(name, value, unit, source) of each assumption; the source of one that differs is "given"."""
        table = []
        for f in fields(self):
            value = getattr(self, f.name)
            source = f.metadata["source"] if value == f.default else f"given (default {f.default:g})"
            table.append((f.name, f"{value:g}", f.metadata["unit"], source))
        return table

    def peak(self, dtype: str) -> float:
        """FLOP/s of one GPU in a compute type."""
        return 1e12 * (self.peak_tflops if dtype == "bfloat16" else self.peak_tflops_float32)

    def link(self, gpus: int) -> float:
        """Bytes a second that each of `gpus` GPUs receives in a collective over all of them.

        Across nodes, the ports of a node together feed it, and NVLink spreads what came in.
        """
        if gpus <= self.gpus_per_node:
            return 1e9 * self.nvlink_gb_s * self.link_efficiency
        return 1e9 * min(self.nvlink_gb_s, self.ib_gb_s * self.gpus_per_node) * self.link_efficiency


def split_assumptions(overrides: Mapping[str, Any]) -> tuple[Assumptions, dict[str, Any]]:
    """The assumptions after `assume.*` overrides, and the other overrides. Raises UserError for an unknown one or a
    value that is no positive number."""
    known = {f.name: f for f in fields(Assumptions)}
    mine = {key.removeprefix(PREFIX): value for key, value in overrides.items() if key.startswith(PREFIX)}
    for name, value in mine.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"unknown assumption {PREFIX + name!r}" + (f": did you mean {PREFIX + close[0]!r}?" if close else "")
            )
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise UserError(f"{PREFIX}{name}={value!r}: expected a positive number ({known[name].metadata['unit']})")
    rest = {key: value for key, value in overrides.items() if not key.startswith(PREFIX)}
    return replace(Assumptions(), **mine), rest
