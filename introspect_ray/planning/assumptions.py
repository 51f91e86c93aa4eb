"""What a plan cannot read from the config: the GPU, its utilisation and price, and the size of a case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from introspect_ray.errors import UserError

PREFIX = "assume."  # of overrides on the command line
_SHEET = "NVIDIA H100 SXM data sheet"
_MMLU = "12,361 MMLU cases, SmolLM2 tokenizer"


def _is(value: float, unit: str, source: str) -> Any:
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """Each field has its unit and source as metadata; `assume.<field>=...` replaces its value.

    The sizes of a case are used only where there are no cases to count.
    """

    memory_gb: float = _is(80, "GB (1e9 bytes)", f"{_SHEET}; the device shows 85, CUDA and NCCL take the rest")
    peak_tflops: float = _is(989, "TFLOP/s", f"{_SHEET}: bfloat16, dense")
    utilisation: float = _is(0.40, "share of peak", "not measured: what FSDP reaches with large batches")
    price: float = _is(6.88, "USD per GPU-hour", "AWS p5.48xlarge on demand, June 2025")
    tree_tokens: float = _is(199.6, "tokens", f"{_MMLU}: x, x∖C and q + e as a tree")
    pair_tokens: float = _is(168.6, "tokens", f"{_MMLU}: x and x∖C as a tree")
    question_tokens: float = _is(177.6, "tokens", f"{_MMLU}: q")
    target_tokens: float = _is(9, "tokens", f"{_MMLU}: e with its end of turn")
    longest_tokens: int = _is(1_099, "tokens", f"{_MMLU}: longest q + e")
    longest_tree_tokens: int = _is(1_112, "tokens", f"{_MMLU}: longest tree")
    cases: int = _is(14_042, "cases", "MMLU's test questions on the hub")

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(name, value, unit, source) of each assumption; the source of a replaced one says "given"."""
        table = []
        for f in fields(self):
            value, source = getattr(self, f.name), f.metadata["source"]
            given = f"given (default {f.default:g})"
            table.append((f.name, f"{value:g}", f.metadata["unit"], source if value == f.default else given))
        return table


def split_assumptions(overrides: Mapping[str, Any]) -> tuple[Assumptions, dict[str, Any]]:
    """The assumptions after `assume.*` overrides, and the other overrides.

    Raises UserError for an unknown assumption, and for a value that is not a positive number.
    """
    known = {f.name: f for f in fields(Assumptions)}
    mine = {key.removeprefix(PREFIX): value for key, value in overrides.items() if key.startswith(PREFIX)}
    for name, value in mine.items():
        if name not in known:
            raise UserError(f"unknown assumption {PREFIX + name!r}: known are {', '.join(known)}")
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise UserError(f"{PREFIX}{name}={value!r}: expected a positive number ({known[name].metadata['unit']})")
    rest = {key: value for key, value in overrides.items() if not key.startswith(PREFIX)}
    return replace(Assumptions(), **mine), rest
