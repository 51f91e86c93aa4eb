"""What all engines share: weight versions, and the order of steps in a labelling and in a weight update."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

from introspect_ray.cases.answers import LabelNode, Reading, Tokens, label_nodes, make_pair, read_label
from introspect_ray.cases.probes import Probe, prompts_of
from introspect_ray.engines import checks
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.engines.protocol import PromptTokens, WeightUpdate
from introspect_ray.engines.walks import Cache, Walks, cache_parts
from introspect_ray.records import BehaviorPair, Delivery, TokenizedCase


class VersionedEngine(ABC):
    """The Engine protocol in terms of `_apply`, `_next_tokens` and `generate`.

    An engine starts at version 0, the policy folder. An exception within a weight update leaves the weights undefined:
    from then on every call raises RuntimeError, and the engine must be replaced.
    """

    _shortfall: str | None = None

    def __init__(self, policy_path: str, max_model_len: int, method: Literal["full", "lora"], lora_rank: int) -> None:
        """policy_path: a local Hugging Face folder. Raises UserError for a folder that no engine can serve."""
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
        """Prompt tokens so far. An engine without a prefix cache counts none."""
        return PromptTokens()

    def shortfall(self) -> str | None:
        """What `deterministic=true` asks for and this engine's machine does not have; None if it has all."""
        return self._shortfall

    def label_pairs(self, cases: Sequence[TokenizedCase]) -> list[BehaviorPair]:
        """y(x), y(x∖C) of each case with closed labels, in order, on one weight version.

        Every inner node of a case's label trie is a prompt of its own, on x and on x∖C. Labels of one token have one
        such node, the end of the prompt. Raises ValueError for prompts that do not fit, and RuntimeError for an
        unusable engine or a change of weights within the call.
        """
        self._require_usable()
        with self._one_version() as version:
            return self._labelled(cases, version)

    def explain(self, cases: Sequence[TokenizedCase]) -> list[Tokens]:
        """The greedy explanation of each case among its valid ones, in order, without the end of turn (walks.py).

        An answer depends on the weights and on the cases of the call. Raises as label_pairs.
        """
        return self._assessed(cases, label=False)[1]

    def label_and_explain(self, cases: Sequence[TokenizedCase]) -> tuple[list[BehaviorPair], list[Tokens]]:
        """The pairs and the explanations of cases with closed labels, on one weight version and one prefix cache.

        The cases are taken in runs that fit into the cache, so that q finds x there. Raises as label_pairs.
        """
        return self._assessed(cases, label=True)

    def _assessed(self, cases: Sequence[TokenizedCase], *, label: bool) -> tuple[list[BehaviorPair], list[Tokens]]:
        self._require_usable()
        pairs: list[BehaviorPair] = []
        said: list[Tokens] = []
        with self._one_version() as version:
            for number, part in enumerate(cache_parts(cases, self._cache())):
                if label:
                    pairs += self._labelled(part, version, keep=number > 0)
                said += self._walked(part, keep=label or number > 0)
        return pairs, said

    def _labelled(self, cases: Sequence[TokenizedCase], version: int, keep: bool = False) -> list[BehaviorPair]:
        sides = [(side, label_nodes(case.label_tokens)) for case in cases for side in (case.prompt, case.ablated)]
        prompts = [side + node.prefix for side, nodes in sides for node in nodes]
        checks.check_prompts(prompts, 1, self._max_model_len)
        answers = iter(self._next_tokens(prompts, [node.tokens for _, nodes in sides for node in nodes], keep))
        readings = iter([_read(nodes, answers) for _, nodes in sides])
        return [make_pair(case, next(readings), next(readings), version) for case in cases]

    def _walked(self, cases: Sequence[TokenizedCase], keep: bool) -> list[Tokens]:
        """Raises ValueError where a logprob is NaN: the walk would be arbitrary."""
        walks = Walks(cases)
        while asked := walks.asked():
            prompts = [one.prompt for one in asked]
            checks.check_prompts(prompts, 1, self._max_model_len)
            answers = [at.logprobs for at in self._next_tokens(prompts, [one.tokens for one in asked], keep)]
            if any(math.isnan(value) for values in answers for value in values):
                raise ValueError(f"logprobs of explanations are NaN at version {self._version}")
            walks.go(answers)
            keep = True
        return walks.tokens()

    def respond(self, cases: Sequence[TokenizedCase]) -> list[tuple[Tokens, Tokens]]:
        """The greedy responses to x and to x∖C of each free-text case, in order, on one weight version.

        At most the case's `max_response` tokens each, without the end of turn. Raises as label_pairs.
        """
        self._require_usable()
        responses: dict[int, tuple[Tokens, Tokens]] = {}
        with self._one_version():
            for length in sorted({case.max_response for case in cases}):
                rows = [row for row, case in enumerate(cases) if case.max_response == length]
                prompts = [prompt for row in rows for prompt in (cases[row].prompt, cases[row].ablated)]
                tokens = self.generate(prompts, length)
                responses |= dict(zip(rows, zip(tokens[::2], tokens[1::2], strict=True), strict=True))
        return [responses[row] for row in range(len(cases))]

    @abstractmethod
    def rest(self) -> None:
        """Give the GPU's memory to whoever shares it, until the next call."""

    @abstractmethod
    def generate(self, prompts: Sequence[Tokens], max_tokens: int) -> list[Tokens]:
        """Greedy continuations without the end-of-turn token, at most `max_tokens` each. Raises as label_pairs."""

    def load_weights(self, update: WeightUpdate) -> Delivery:
        """Serve `update` from now on, and compute its probe on the weights then served.

        Raises ValueError where names or shapes do not fit; the old version is still served then. Any later exception
        leaves the engine unusable.
        """
        start = time.perf_counter()
        self._require_usable()
        self._check(update)
        with ThreadPoolExecutor(1, "fingerprint") as beside:  # it reads what arrived, whatever is made of it here
            received = beside.submit(fingerprints, update.tensors)
            with self._unusable_on_error(f"weight update to version {update.version} failed"):
                self._apply(update)
                self._version = update.version
                loaded = time.perf_counter()
                probe = self._probe(update.probe)
            probed = time.perf_counter()
            marks = received.result()
        seconds = {"load": loaded - start, "probe": probed - loaded, "fingerprint": time.perf_counter() - probed}
        return Delivery(update.version, marks, probe, seconds, checks.nbytes(update.tensors))

    def _probe(self, probe: Probe) -> tuple[float, ...]:
        """The logprobs of a probe, item by item, on the weights now served: by the same calls as labels."""
        return tuple(value for answer in self._next_tokens(*prompts_of(probe)) for value in answer.logprobs)

    def close(self) -> None:
        """Free the engine; later calls raise RuntimeError. A second close does nothing."""
        self._unusable = self._unusable or "it was closed"

    @abstractmethod
    def _apply(self, update: WeightUpdate) -> None:
        """Replace the weights by those of the update, which has been checked."""

    def _cache(self) -> Cache | None:
        """The prefix cache, if there is one."""
        return None

    @abstractmethod
    def _next_tokens(
        self, prompts: Sequence[Tokens], asked: Sequence[Tokens], keep: bool = False
    ) -> list[checks.NextToken]:
        """After each prompt: the logprobs of the tokens `asked` for it and the argmax, on the weights now served.

        Nothing cached from older weights may be used, nor from earlier calls but with `keep`: then those since the last
        one without it were on the same weights.
        """

    def _check(self, update: WeightUpdate) -> None:
        """Raise ValueError for an update that does not fit this engine, before anything changes."""
        if (update.kind == "adapter") != (self._method == "lora"):
            raise ValueError(
                f"a weight update of kind {update.kind!r} does not fit an engine started with method={self._method!r}"
            )
        if update.kind == "full":
            checks.check_full(update, self._expected)
        else:
            checks.check_adapter(update, self._expected, self._lora_rank)
        checks.check_prompts(prompts_of(update.probe)[0], 1, self._max_model_len)

    def _require_usable(self) -> None:
        if self._unusable:
            raise RuntimeError(f"this {type(self).__name__} cannot be used: {self._unusable}. Replace the engine")

    @contextmanager
    def _one_version(self) -> Iterator[int]:
        """Raises RuntimeError at the end if the weights changed meanwhile."""
        version = self._version
        yield version
        if self._version != version:
            raise RuntimeError(
                f"the weights changed from version {version} to {self._version} while cases were labelled"
            )

    @contextmanager
    def _unusable_on_error(self, reason: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._unusable = f"{reason} ({error!r})"
            raise


def _read(nodes: Sequence[LabelNode], answers: Iterator[checks.NextToken]) -> Reading:
    """Read one side of a case off the next answers, one per node."""
    at_nodes = [next(answers) for _ in nodes]
    return read_label(nodes, [at.logprobs for at in at_nodes], [at.argmax_token for at in at_nodes])
