"""From configuration to judge."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from introspect_ray.config.judges import JudgeConfig
from introspect_ray.errors import UserError
from introspect_ray.judges import refusal
from introspect_ray.judges.endpoint import ChatEndpoint
from introspect_ray.judges.keyword import REFUSAL, KeywordJudge, WordLists, read_words
from introspect_ray.judges.llm import LLMJudge, check_instruction, check_labels
from introspect_ray.judges.protocol import Complete, Judge

Labels = tuple[str, ...]


def make_judge(cfg: JudgeConfig, complete: Complete | None = None, policy_id: str | None = None) -> Judge:
    """The judge that `cfg` describes; not its second one, which is made by a call of its own on cfg.second.

    complete, policy_id: for judge.policy, what answers chats with it, and its content hash. Reads files, reaches no
    server (ChatEndpoint.check does). Raises UserError for a missing or unusable file, for an instruction without
    {response} or one of the labels, for labels that cannot be told apart, and for a second judge of other labels.
    """
    labels = judge_labels(cfg)
    _check_second(cfg, labels)
    if cfg.kind == "keyword":
        return KeywordJudge(_words(cfg), Path(cfg.words).stem if cfg.words else "refusal")
    instruction = _instruction(cfg, labels)
    if cfg.endpoint:
        endpoint = make_endpoint(cfg)
        decided_by = json.dumps([endpoint.url, endpoint.model, dict(endpoint.request)], sort_keys=True)
        return LLMJudge(endpoint.complete, labels, instruction, endpoint.model, decided_by)
    if complete is None:
        raise UserError(f"judge.policy={cfg.policy} needs the run's engines, this job has none: give judge.endpoint")
    policy = str(cfg.policy)
    return LLMJudge(complete, labels, instruction, policy.rstrip("/").rpartition("/")[2], policy_id or policy)


def make_endpoint(cfg: JudgeConfig) -> ChatEndpoint:
    """The server of judge.endpoint, to be checked before a run. Raises UserError for a URL that is none."""
    if not (cfg.endpoint and cfg.model):
        raise UserError("judge.endpoint and judge.model are not set: give both")
    url = cfg.endpoint.rstrip("/")
    return ChatEndpoint(url, cfg.model, cfg.key_env, cfg.timeout_s, cfg.patience_s, cfg.parallel, cfg.request)


def judge_labels(cfg: JudgeConfig) -> tuple[str, ...]:
    """The labels of the judge that `cfg` describes. Raises UserError as make_judge."""
    if cfg.kind == "llm":
        labels = cfg.labels or refusal.LABELS
    else:
        labels = _words(cfg).labels
        if cfg.labels and cfg.labels != labels:
            where = f"words file {cfg.words}" if cfg.words else "the bundled list"
            raise UserError(
                f"judge.labels={list(cfg.labels)}, but {where} has {list(labels)}: leave judge.labels out, or name "
                "them in a words file (judge.words)"
            )
    check_labels(labels)
    return labels


def unjudged_label(cfg: JudgeConfig) -> str:
    """The label of a reply without a verdict. Raises UserError for judge.unjudged that is none of the labels."""
    labels = judge_labels(cfg)
    if cfg.unjudged is None:
        return labels[-1]
    if cfg.unjudged not in labels:
        raise UserError(
            f"judge.unjudged={cfg.unjudged!r} is none of the judge's labels {list(labels)}: name one of them"
        )
    return cfg.unjudged


def check_judge(cfg: JudgeConfig, case_labels: Iterable[Labels]) -> None:
    """Check `cfg` and its second judge before a run: files, labels, and that the servers of judge.endpoint answer.

    case_labels: the label sets of the free-text cases. Raises UserError with the remedy; judge.policy is not looked at.
    """
    labels = judge_labels(cfg)
    for used in case_labels:
        check_case_labels(labels, used)
    unjudged_label(cfg)
    _check_second(cfg, labels)
    for judge in filter(None, (cfg, cfg.second)):
        if judge.kind == "llm":
            _instruction(judge, judge_labels(judge))
        if judge.endpoint:
            make_endpoint(judge).check()


def check_case_labels(labels: Labels, case_labels: Labels) -> None:
    """Raises UserError where a free-text case has other labels than the judge's, in any order."""
    if set(case_labels) != set(labels):
        raise UserError(
            f"free-text cases have the labels {list(case_labels)}, the judge {list(labels)}: give the judge theirs "
            "(judge.labels and judge.instruction, or judge.words)"
        )


def _check_second(cfg: JudgeConfig, labels: Labels) -> None:
    if cfg.second and set(judge_labels(cfg.second)) != set(labels):
        raise UserError(
            f"judge.second has the labels {list(judge_labels(cfg.second))}, the first judge {list(labels)}: two judges "
            "are compared on the same labels"
        )


def _words(cfg: JudgeConfig) -> WordLists:
    return read_words(cfg.words) if cfg.words else REFUSAL


def _instruction(cfg: JudgeConfig, labels: tuple[str, ...]) -> str:
    if not cfg.instruction:
        check_instruction(refusal.INSTRUCTION, labels, "the bundled instruction on refusals")
        return refusal.INSTRUCTION
    try:
        text = Path(cfg.instruction).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"instruction file {cfg.instruction}: {reason}; correct judge.instruction") from None
    check_instruction(text, labels, f"instruction file {cfg.instruction}")
    return text
