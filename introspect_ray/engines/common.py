"""What the engines share: the order of a labelling and of a weight update. No engine library here."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from introspect_ray.engines import checks
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.engines.protocol import PromptTokens, WeightUpdate
from introspect_ray.records import BehaviorPair, Delivery, TokenizedCase


class BaseEngine(ABC):
    """The Engine protocol on `_apply` and `_answers`. Starts at version 0, the policy in `policy_path`.

    An exception inside a weight update leaves the weights undefined: every later call raises
    RuntimeError until the engine is replaced.
    """

    def __init__(self, policy_path: str, max_model_len: int, method: Literal["full", "lora"], lora_rank: int) -> None:
        """policy_path: local Hugging Face folder. Raises UserError for a folder that no engine can serve."""
        self._expected = checks.policy_shapes(policy_path)
        self._eos = checks.eos_token_ids(policy_path)
        self._max_model_len = max_model_len
        self._method = method
        self._lora_rank = lora_rank
        self._version = 0
        self._unusable: str | None = None

    @property
    def weight_version(self) -> int:
        return self._version

    @property
    def usable(self) -> bool:
        return self._unusable is None

    @property
    def prompt_tokens(self) -> PromptTokens:
        """Of all prompts so far; none are counted where there is no prefix cache."""
        return PromptTokens()

    def label_pairs(self, cases: Sequence[TokenizedCase]) -> list[BehaviorPair]:
        """y(x), y(x∖C) of each case, in order, on one weight version.

        Raises ValueError for prompts that do not fit, RuntimeError when unusable or if versions mix.
        """
        self._require_usable()
        prompts = [prompt for case in cases for prompt in (case.prompt, case.ablated)]
        checks.check_prompts(prompts, 1, self._max_model_len)
        version = self._version
        answers = self._answers(prompts, [ids for case in cases for ids in (case.label_ids, case.label_ids)])
        if self._version != version:
            raise RuntimeError(f"weights went from version {version} to {self._version} while pairs were labelled")
        return [checks.make_pair(c, answers[2 * i], answers[2 * i + 1], version) for i, c in enumerate(cases)]

    @abstractmethod
    def generate(self, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[tuple[int, ...]]:
        """Greedy continuations without the end-of-turn token, at most `max_tokens` each. Raises as label_pairs."""

    def load_weights(self, update: WeightUpdate) -> Delivery:
        """Serve `update` from now on and compute its probe on what is then served.

        Raises ValueError, with the old version still served, where names or shapes do not fit; any later
        exception leaves the engine unusable.
        """
        start = time.perf_counter()
        self._require_usable()
        self._check(update)
        with self._unusable_on_error(f"weight update to version {update.version} failed"):
            self._apply(update)
            self._version = update.version
            loaded = time.perf_counter()
            probe = self._probe(update.probe)
        probed = time.perf_counter()
        received = fingerprints(update.tensors)
        seconds = {"load": loaded - start, "probe": probed - loaded, "fingerprint": time.perf_counter() - probed}
        return Delivery(update.version, received, probe, seconds, checks.nbytes(update.tensors))

    def _probe(self, case: TokenizedCase) -> tuple[float, ...]:
        """Label logprobs of x, then of x∖C, on what is served."""
        cued, ablated = self._answers([case.prompt, case.ablated], [case.label_ids] * 2)
        return cued.logprobs + ablated.logprobs

    def close(self) -> None:
        """Free the engine; later calls raise RuntimeError. A second close does nothing."""
        self._unusable = self._unusable or "it was closed"

    @abstractmethod
    def _apply(self, update: WeightUpdate) -> None:
        """Put the checked update in place."""

    @abstractmethod
    def _answers(self, prompts: Sequence[tuple[int, ...]], label_ids: Sequence[tuple[int, ...]]) -> list[checks.Answer]:
        """The answer position of each prompt, on the weights now served; nothing may be cached from older ones."""

    def _check(self, update: WeightUpdate) -> None:
        """Everything that can be wrong with an update is found here, before anything changes."""
        if (update.kind == "adapter") != (self._method == "lora"):
            raise ValueError(f"update of kind {update.kind!r} for an engine started with method={self._method!r}")
        if update.kind == "full":
            checks.check_full(update, self._expected)
        else:
            checks.check_adapter(update, self._expected, self._lora_rank)
        checks.check_prompts([update.probe.prompt, update.probe.ablated], 1, self._max_model_len)

    def _require_usable(self) -> None:
        if self._unusable:
            raise RuntimeError(f"this {type(self).__name__} cannot be used: {self._unusable}. Replace the engine")

    @contextmanager
    def _unusable_on_error(self, reason: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._unusable = f"{reason} ({error!r})"
            raise
