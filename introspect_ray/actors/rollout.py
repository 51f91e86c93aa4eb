"""The rollout actor: one engine in one process, and the requests it answers. It makes no learning decision.

A request names its weights and where they are stored, so that any engine can answer it: an engine that serves another
version, or M0 because Ray has just restarted it, loads them first.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import ray

from introspect_ray.actors.policy_here import policy_here
from introspect_ray.actors.weight_sync import Expected, unpack
from introspect_ray.cases.answers import Tokens
from introspect_ray.cases.probes import Probe
from introspect_ray.cases.table import CaseTable, cases_of
from introspect_ray.cases.tokenize import prompt_tokens
from introspect_ray.config import RolloutConfig
from introspect_ray.engines import make_engine
from introspect_ray.engines.protocol import PromptTokens, WeightUpdate
from introspect_ray.errors import UserError
from introspect_ray.judges import JudgeReport, Judging, Panel
from introspect_ray.policy import load_saved, load_tokenizer
from introspect_ray.records import BehaviorPair, Delivery, Message, TokenizedCase
from introspect_ray.storage import open_store
from introspect_ray.storage.scratch import scratch_folder

_REPLY_S = 0.5  # for an error to reach its caller before the process ends
Task = Literal["label", "explain", "walk", "assess", "chat"]
Method = Literal["full", "lora"]


@dataclass(frozen=True)
class EngineSpec:
    """What a rollout actor needs to start its engine."""

    policy: str  # a name that every node resolves on its own disk, or an s3:// folder
    max_model_len: int
    method: Method
    lora_rank: int
    seed: int
    judging: Judging | None = None  # who judges free responses; None where all labels are closed
    chats: bool = False  # a judging policy: it answers chats instead of cases
    deterministic: bool = False


@dataclass(frozen=True)
class Exported:
    """A trained policy (or adapter) in Hugging Face format, and the probe for its receipt."""

    uri: str
    probe: Probe


@dataclass(frozen=True)
class Serving:
    """The weights that a request is about: what their receipt must say, and where they are stored.

    expected None: M0, with which engines start.
    """

    version: int = 0
    expected: Expected | None = None
    weights: Exported | list[Any] | None = None  # a list holds the ref of a packed update, which Ray passes unresolved


@dataclass(frozen=True)
class Request:
    """What to do with one fixed group of cases, or of chats. home: the number of the actor that is asked first.

    rest: the engine gives its GPU's memory back before it answers.
    """

    task: Task
    case_ids: Sequence[str]
    serving: Serving
    home: int
    max_tokens: int = 1
    chats: Sequence[tuple[Message, ...]] = ()  # task "chat", which is about no cases
    rest: bool = False

    def __str__(self) -> str:
        if self.task == "chat":
            return f"chat {len(self.chats)} replies to be judged"
        first = f" from {self.case_ids[0]!r}" if self.case_ids else ""
        return f"{self.task} {len(self.case_ids)} cases{first} on version {self.serving.version}"


class Assessed(NamedTuple):
    """What a policy does on a case, and how it explains that: the explanation's tokens without its end of turn."""

    pair: BehaviorPair
    said: Tokens


@dataclass(frozen=True)
class RolloutResult:
    """What was answered to one group, in its order: behaviour pairs (task "label"), the tokens of explanations, freely
    generated ("explain") or greedy among the valid ones ("walk"), both a pair and a walk ("assess"), or texts ("chat").

    receipt: of the weights they were made with; None for M0 as started. seconds: spent on the request; idle_s: between
    the last request and this one.
    """

    answers: list[Any]
    receipt: Delivery | None
    seconds: float
    idle_s: float
    prompt_tokens: PromptTokens
    judged: JudgeReport | None = None  # on the group's free responses; None without any

    @property
    def pairs(self) -> list[BehaviorPair]:
        return self.answers


class RolloutWorker:
    """One engine in one process. Ray restarts the process when it dies, with the same arguments.

    If the engine cannot start on this node (vLLM or the policy is missing), every call raises the UserError. __init__
    does not raise: Ray would keep nothing but the text of its traceback.
    """

    def __init__(self, rollout: RolloutConfig, spec: EngineSpec) -> None:
        self._refused: UserError | None = None
        try:
            with policy_here(spec.policy) as folder:
                self._engine = make_engine(
                    rollout,
                    folder,
                    max_model_len=spec.max_model_len,
                    method=spec.method,
                    lora_rank=spec.lora_rank,
                    seed=spec.seed,
                    deterministic=spec.deterministic,
                )
                self._tokenizer = load_tokenizer(folder) if spec.judging or spec.chats else None
        except UserError as error:
            self._refused = UserError(f"{error} (a rollout actor, on node {socket.gethostname()})")
        self._method, self._max_model_len = spec.method, spec.max_model_len
        self._panel = Panel(spec.judging, self._tokenizer) if spec.judging and not self._refused else None
        self._tables: list[CaseTable] = []
        self._receipt: Delivery | None = None
        self._condemned = False
        self._free_since = time.perf_counter()

    def ping(self) -> bool:
        """Whether the engine can be used: not in the middle of an update, nor in a process about to end.

        Answered once the engine is up and all earlier calls have returned.
        """
        self._require_engine()
        return self._engine.usable and not self._condemned

    def load_weights(self, packed: WeightUpdate) -> Delivery:
        self._require_engine()
        receipt = self._load(unpack(packed))
        self._free_since = time.perf_counter()
        return receipt

    def engine(self, method: str, *args: Any) -> Any:
        """Call a method of the engine, for transfers that bypass this actor (weight_transfer.py)."""
        self._require_engine()
        with self._condemned_on_error():
            answer = getattr(self._engine, method)(*args)
        if isinstance(answer, Delivery):
            self._receipt = answer
        self._free_since = time.perf_counter()
        return answer

    def answer(self, request: Request, all_cases: list[Any]) -> RolloutResult:
        """Answer one request, with the weights that it names: they are loaded first if others are served.

        all_cases: refs of CaseTables, which are resolved at the first call.
        """
        self._require_engine()
        began = time.perf_counter()
        idle = began - self._free_since
        serving, served = request.serving, self._receipt
        if (served and (served.version, served.fingerprints)) != (
            serving.expected and (serving.expected.version, serving.expected.fingerprints)
        ):
            self._load(self._fetch(serving))
        if all_cases and not self._tables:
            self._tables = ray.get(all_cases)
        cases = cases_of(self._tables, request.case_ids)
        before = self._engine.prompt_tokens
        answers: list[Any]
        judged = None
        if request.task == "label":
            answers, judged = self._label(cases)
        elif request.task == "explain":
            answers = self._ask(self._engine.generate, [case.question for case in cases], request.max_tokens)
        elif request.task == "walk":
            answers = self._ask(self._engine.explain, cases)
        elif request.task == "assess":
            answers, judged = self._assess(cases)
        else:
            answers = self._chat(request.chats, request.max_tokens)
        if request.rest:
            with self._condemned_on_error():
                self._engine.rest()
        self._free_since = time.perf_counter()
        tokens = self._engine.prompt_tokens - before
        return RolloutResult(answers, self._receipt, self._free_since - began, idle, tokens, judged)

    def _label(self, cases: Sequence[TokenizedCase]) -> tuple[list[BehaviorPair], JudgeReport | None]:
        """The pairs of `cases` in order. Free responses are judged here: a judge that fails is no broken engine."""
        free = [case for case in cases if case.max_response]
        closed = [case for case in cases if not case.max_response]
        with self._condemned_on_error():
            pairs = self._engine.label_pairs(closed) if closed else []
            responses = self._engine.respond(free) if free else []
        if not free:
            return pairs, None
        if self._panel is None:
            raise ValueError(f"case {free[0].case_id} is answered in free text, but these engines have no judge")
        found, judged = self._panel.pairs(free, responses, self._engine.weight_version)
        of_closed, of_free = iter(pairs), iter(found)
        return [next(of_free) if case.max_response else next(of_closed) for case in cases], judged

    def _assess(self, cases: Sequence[TokenizedCase]) -> tuple[list[Assessed], JudgeReport | None]:
        """Pairs and walks. Only where all labels are closed is it one call of the engine."""
        if any(case.max_response for case in cases):
            pairs, judged = self._label(cases)
            said = self._ask(self._engine.explain, cases)
        else:
            (pairs, said), judged = self._ask(self._engine.label_and_explain, cases), None
        return list(map(Assessed, pairs, said)), judged

    def _chat(self, chats: Sequence[tuple[Message, ...]], max_tokens: int) -> list[str]:
        """Greedy answers as text, through this policy's own chat template, without a thinking mode."""
        tokenizer: Any = self._tokenizer
        prompts = [prompt_tokens(tokenizer, chat) for chat in chats]
        longest = max(map(len, prompts), default=0)
        if longest + max_tokens > self._max_model_len:
            raise UserError(
                f"judge.policy: a chat of {longest} tokens and {max_tokens} of answer, but the judging engine takes "
                f"{self._max_model_len}: shorten the cases (response.max_tokens), take another judge, or "
                "raise rollout.max_model_len where its context allows it"
            )
        answers = self._ask(self._engine.generate, prompts, max_tokens)
        return [tokenizer.decode(list(answer), skip_special_tokens=True) for answer in answers]

    def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        """A call of the engine."""
        with self._condemned_on_error():
            return call(*args)

    def _require_engine(self) -> None:
        if self._refused:
            raise self._refused

    def _load(self, update: WeightUpdate) -> Delivery:
        self._receipt = self._ask(self._engine.load_weights, update)
        return self._receipt

    def _fetch(self, serving: Serving) -> WeightUpdate:
        if serving.weights is None:  # this training fails; recovery starts it again, and it sends weights again
            raise ValueError(
                f"asked for weight version {serving.version}, the engine serves another one and no copy was kept "
                "(M0 as started, and versions that went from GPU to GPU)"
            )
        if isinstance(serving.weights, list):
            return unpack(ray.get(serving.weights[0]))
        exported = serving.weights
        with scratch_folder("policy") as folder:
            open_store(exported.uri).download_dir("", folder)
            tensors, config = load_saved(folder, self._method)
        return WeightUpdate(
            serving.version, "adapter" if self._method == "lora" else "full", tensors, exported.probe, config
        )

    @contextmanager
    def _condemned_on_error(self) -> Iterator[None]:
        """End this process if the engine fails (out of memory, half loaded): Ray then starts another one.

        The first caller gets the error; later callers find the actor dead and send their request again. ValueError and
        UserError are about the request and leave the engine as it was.
        """
        if self._condemned:
            threading.Event().wait()
        try:
            yield
        except (ValueError, UserError):
            raise
        except Exception:
            self._condemned = True
            threading.Timer(_REPLY_S, os._exit, [1]).start()
            raise
