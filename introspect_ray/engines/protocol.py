"""The interface of a rollout engine. vLLM and transformers stand behind it; nothing else knows which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from introspect_ray.records import BehaviorPair, Delivery, TokenizedCase

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightUpdate:
    """One version of the policy on its way to the engines.

    kind "full": `tensors` are Hugging Face names -> CPU tensors of the whole policy, tied heads included.
    kind "adapter": PEFT adapter state only; `adapter_config` is its adapter_config.json as a dict.
    probe: the case all sides compute label logprobs on, to verify what is served.
    """

    version: int
    kind: Literal["full", "adapter"]
    tensors: Mapping[str, torch.Tensor]
    probe: TokenizedCase
    adapter_config: Mapping[str, object] | None = None


@dataclass(frozen=True)
class PromptTokens:
    """Prompt tokens an engine was given, and those of them it took from its prefix cache. Example: (200, 96)."""

    given: int = 0
    cached: int = 0

    def __add__(self, other: PromptTokens) -> PromptTokens:
        return PromptTokens(self.given + other.given, self.cached + other.cached)

    def __sub__(self, other: PromptTokens) -> PromptTokens:
        return PromptTokens(self.given - other.given, self.cached - other.cached)

    @property
    def hit_rate(self) -> float | None:
        """Share taken from the cache; None where no prompt was counted."""
        return self.cached / self.given if self.given else None


class Engine(Protocol):
    """One policy being served, at one weight version at a time."""

    @property
    def weight_version(self) -> int: ...

    @property
    def prompt_tokens(self) -> PromptTokens: ...

    @property
    def usable(self) -> bool:
        """False once a weight update was left unfinished: the engine must be replaced."""
        ...

    def load_weights(self, update: WeightUpdate) -> Delivery:
        """Serve `update` from now on; caches of older versions are dropped. Raises on name/shape mismatch
        before anything is changed."""
        ...

    def label_pairs(self, cases: Sequence[TokenizedCase]) -> list[BehaviorPair]:
        """y(x), y(x∖C) of each case: argmax over label_ids at the next position, on one weight version."""
        ...

    def generate(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[tuple[int, ...]]:
        """Greedy continuations (token ids, without the end-of-turn token), free over the vocabulary."""
        ...
