"""The interface of a rollout engine. Callers do not know whether vLLM or transformers is behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from introspect_ray.cases.answers import Tokens
from introspect_ray.cases.probes import Probe
from introspect_ray.records import BehaviorPair, Delivery, TokenizedCase

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightUpdate:
    """One version of the policy on its way to the engines.

    kind "full": `tensors` are CPU tensors of the whole policy by Hugging Face name, tied heads included.
    kind "adapter": they are the state of the PEFT adapter, and `adapter_config` is the content of its
    adapter_config.json.
    probe: trainer and engines compare their logprobs on it, to verify which weights are served (cases/probes.py).
    """

    version: int
    kind: Literal["full", "adapter"]
    tensors: Mapping[str, torch.Tensor]
    probe: Probe
    adapter_config: Mapping[str, object] | None = None


@dataclass(frozen=True)
class PromptTokens:
    """How many prompt tokens an engine was given, and how many of them its prefix cache held. Example: (200, 96)."""

    given: int = 0
    cached: int = 0

    def __add__(self, other: PromptTokens) -> PromptTokens:
        return PromptTokens(self.given + other.given, self.cached + other.cached)

    def __sub__(self, other: PromptTokens) -> PromptTokens:
        return PromptTokens(self.given - other.given, self.cached - other.cached)

    @property
    def hit_rate(self) -> float | None:
        """Share of the tokens that the cache held; None without tokens."""
        return self.cached / self.given if self.given else None


class Engine(Protocol):
    """Serves one policy, at one weight version at a time."""

    @property
    def weight_version(self) -> int: ...

    @property
    def prompt_tokens(self) -> PromptTokens: ...

    @property
    def usable(self) -> bool:
        """False for a closed engine, and after a weight update that failed: the engine must be replaced."""
        ...

    def shortfall(self) -> str | None:
        """What `deterministic=true` asks for and this engine's machine does not have; None if it has all."""
        ...

    def load_weights(self, update: WeightUpdate) -> Delivery:
        """Serve `update` from now on and drop what was cached from older versions.

        Raises ValueError where names or shapes do not fit, before anything changes.
        """
        ...

    def rest(self) -> None:
        """Give the GPU's memory to whoever shares it, until the next call. Nothing to do for an engine without one."""
        ...

    def label_pairs(self, cases: Sequence[TokenizedCase]) -> list[BehaviorPair]:
        """y(x), y(x∖C) of each case with closed labels: the greedy walks over its label trie, on one weight version."""
        ...

    def explain(self, cases: Sequence[TokenizedCase]) -> list[Tokens]:
        """The explanation of each case by the greedy walk over its valid ones (walks.py), as token ids without the end
        of turn, on one weight version. `generate` on q is the free one."""
        ...

    def label_and_explain(self, cases: Sequence[TokenizedCase]) -> tuple[list[BehaviorPair], list[Tokens]]:
        """`label_pairs` and `explain` of the same cases with closed labels in one call, in which x, x∖C and q share the
        prefix cache."""
        ...

    def respond(self, cases: Sequence[TokenizedCase]) -> list[tuple[Tokens, Tokens]]:
        """The greedy responses to x and to x∖C of each free-text case, on one weight version: at most `max_response`
        tokens each, without the end of turn."""
        ...

    def generate(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[tuple[int, ...]]:
        """Greedy continuations over the full vocabulary, as token ids without the end-of-turn token."""
        ...
