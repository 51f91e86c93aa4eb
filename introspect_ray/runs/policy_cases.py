"""The cases of a run as tokens of one policy, and the checks that need these tokens."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from introspect_ray.cases.answers import label_nodes
from introspect_ray.cases.label_trie import label_branches
from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import end_of_turn, longest_sequence, tokenize_case
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import learner_labels
from introspect_ray.engines.checks import check_vllm_limits
from introspect_ray.errors import UserError
from introspect_ray.judges import judge_labels
from introspect_ray.policy import load_tokenizer, local_policy
from introspect_ray.policy.files import read_object
from introspect_ray.records import Case, TokenizedCase
from introspect_ray.tasks import CaseStream, load_cases

_BETWEEN_TURNS = 8  # tokens that a chat template may write between two turns


@dataclass(frozen=True)
class PolicyCases:
    """What a policy's engines and its generated tokens are read with. Picklable; case ids are those of all policies."""

    train: CaseTable
    test: CaseTable
    tokenizer: Any
    max_model_len: int  # tokens
    max_explanation_tokens: int

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        """The allowed labels of all cases, by case id."""
        return ChainMap(self.train.labels, self.test.labels)  # type: ignore[arg-type]

    @property
    def free_text(self) -> bool:
        """Whether any case is answered in free text, by the verdict of a judge."""
        return any(not used.label_tokens for table in (self.train, self.test) for used in table.answers)

    def served_by(self, cfg: RunConfig, path: str) -> PolicyCases:
        """The same cases for another policy of the same tokenizer, in the folder `path`. Raises UserError as below."""
        return replace(self, max_model_len=model_len(cfg, (self.train, self.test), context_length(path)))


def one_token(cases: CaseTable) -> bool:
    """Whether all answers are labels of one token: then the KL is at the ends of the prompts, whatever M0 says."""
    return all(used.label_tokens and all(len(one) == 1 for one in used.label_tokens) for used in cases.answers)


def read_cases(cfg: RunConfig) -> tuple[CaseStream, CaseStream]:
    """(training cases, held-out cases) of a run; task.max_tokens counts the tokens of M0. Raises UserError."""
    measured = cfg.task.max_tokens is not None
    return load_cases(cfg.task, load_tokenizer(local_policy(cfg.policy)) if measured else None)


def tokenize_cases(cfg: RunConfig, sides: tuple[CaseStream, CaseStream], path: str, tokenizer: Any) -> PolicyCases:
    """The training and held-out cases as tokens of the policy in the folder `path`.

    Raises UserError, with the place of the case, for one that the tokenizer cannot say, that the run's judge or engine
    does not take, or that is longer than the policy's context or rollout.max_model_len.
    """
    context = context_length(path)
    known = _vocabulary(path)
    train, test = (CaseTable.build(_tokenized(cfg, side, tokenizer, context, known)) for side in sides)
    if cfg.rollout.served_by == "vllm":
        check_vllm_limits(_choices(cfg, (train, test)), cfg.lora_rank if cfg.method == "lora" else 0)
    length = model_len(cfg, (train, test), context)
    return PolicyCases(train, test, tokenizer, length, _new_tokens(cfg, (train, test)))


def _choices(cfg: RunConfig, tables: Sequence[CaseTable]) -> Iterator[Sequence[int]]:
    """The next tokens that an engine is asked about at once: of labels and, with eval.decode=trie, explanations."""
    for used in (used for table in tables for used in table.answers):
        yield from (node.tokens for node in (label_nodes(used.label_tokens) if used.label_tokens else ()))
        if cfg.eval.decode == "trie":
            yield from (branch.tokens for branch in label_branches(tuple(used.explanations.items())))


def model_len(cfg: RunConfig, tables: Sequence[CaseTable], context: int | None = None) -> int:
    """Tokens of the longest sequence that an engine sees, unless rollout.max_model_len is given.

    It is x or x∖C with its answer, or q with its explanation, rounded up to a multiple of 32, but at most `context`,
    the policy's own limit (None: unknown). With task.shots there is room for as many of the longest explained
    questions, as far as the context goes. Raises UserError if the given length or the context is too small.
    """
    new_tokens = _new_tokens(cfg, tables)
    answered = max(table.longest_answered for table in tables) + 1
    explained = max(max(table.longest_explained + 1, table.longest_question + new_tokens) for table in tables)
    need, given = max(answered, explained), cfg.rollout.max_model_len
    what = f"the longest case (a prompt and its answer {answered}, a question and its explanation {explained}) needs"
    if given is not None and given < need:
        raise UserError(
            f"rollout.max_model_len={given}, but {what} {need} tokens: raise it or leave it out, or shorten the cases "
            "(response.max_tokens)"
        )
    _check_context(context, need, what)
    if given is not None:
        _check_context(context, given, "rollout.max_model_len asks for", "lower it or leave it out")
        return given
    rounded = -(-(need + cfg.task.shots * (explained + _BETWEEN_TURNS)) // 32) * 32
    return rounded if context is None else min(rounded, context)


def context_length(path: str) -> int | None:
    """Most tokens of a sequence by config.json of a policy folder; None if it does not say, or its positions are
    stretched by a rule of their own (YaRN)."""
    config = _text_config(path)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) not in ("default", "llama3"):
        return None
    return _number(path, config, "max_position_embeddings")


def _text_config(path: str) -> dict[str, Any]:
    """config.json of a policy folder, or the part on text of one that also reads images."""
    config = read_object(Path(path) / "config.json")
    text = config.get("text_config")
    return text if isinstance(text, dict) and text else config


def _vocabulary(path: str) -> int | None:
    """How many tokens the policy in a folder knows; None if its config does not say."""
    return _number(path, _text_config(path), "vocab_size")


def _number(path: str, config: Mapping[str, Any], key: str) -> int | None:
    found = config.get(key)
    if found is None or type(found) is int:
        return found
    raise UserError(f"{path}/config.json: {key} is {found!r:.80}, and must be a whole number: copy the folder again")


def _new_tokens(cfg: RunConfig, tables: Sequence[CaseTable]) -> int:
    return cfg.eval.max_new_tokens or max(table.longest_explanation for table in tables)


def _tokenized(
    cfg: RunConfig, cases: CaseStream, tokenizer: Any, context: int | None, known: int | None
) -> Iterator[TokenizedCase]:
    """The cases as tokens. Those of free text are checked against the run's judge, all against the policy's context and
    the tokens that it knows."""
    end_of_turn(tokenizer)  # a tokenizer without one is no fault of a case
    verdicts: tuple[str, ...] = ()
    for where, case in cases.placed():
        if case.response.kind == "free" and not verdicts:
            verdicts = judge_labels(cfg.judge)
        try:
            if case.response.kind == "free":
                _check_judge(cfg, case, verdicts)
            tokenized = tokenize_case(case, tokenizer, cfg.task.answer_prefix)
            _check_context(context, longest_sequence([tokenized]) + 1, f"case {case.case_id!r} needs")
            _check_known(known, tokenized)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        yield tokenized


def _check_context(
    context: int | None,
    need: int,
    what: str,
    remedy: str = "take a policy with a longer one, or shorten the case (response.max_tokens)",
) -> None:
    """Refuse a sequence of `need` tokens that the policy cannot take. what: what needs them."""
    if context is not None and context < need:
        raise UserError(f"the policy's context={context}, but {what} {need} tokens: {remedy}")


def _check_known(known: int | None, case: TokenizedCase) -> None:
    """Refuse tokens beyond the policy's embedding, which a tokenizer of another policy has."""
    if known is not None and (most := max(*case.prompt, *case.ablated, *case.question)) >= known:
        raise UserError(
            f"case {case.case_id!r} has the token {most}, but the policy's config.json has vocab_size={known}: "
            "tokenizer and config.json are not of one policy, copy the whole folder again"
        )


def _check_judge(cfg: RunConfig, case: Case, verdicts: tuple[str, ...]) -> None:
    kind, asked = cfg.judge.kind, case.response.judge
    if asked is not None and asked != kind:
        raise UserError(
            f"case {case.case_id!r} asks for response.judge={asked}, but the run has judge.kind={kind}: set "
            f"judge.kind={asked}, or leave response.judge out of the case"
        )
    if set(case.labels) != set(verdicts):
        where = "judge.words" if kind == "keyword" else "judge.labels"
        raise UserError(
            f"case {case.case_id!r} has the labels {list(case.labels)}, but the judge's verdicts are {list(verdicts)}: "
            f"write these into the case, or set {where}"
        )
    if learner_labels(cfg):
        raise UserError(
            f"case {case.case_id!r} is answered by free text, which rollout.engine=learner cannot label: set "
            "rollout.engine=vllm or transformers"
        )
