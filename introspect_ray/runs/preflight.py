"""Everything that can be refused before anything heavy starts: policies, cases, tokens, stores, room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from introspect_ray.cases.auxiliary_table import AuxiliaryTable
from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import RunConfig
from introspect_ray.engines import check_installed
from introspect_ray.engines.checks import check_vllm_limits
from introspect_ray.errors import UserError
from introspect_ray.policy import check_policy, is_adapter, load_tokenizer, local_policy, policy_id
from introspect_ray.runs.auxiliary import read_auxiliary
from introspect_ray.runs.placement import check_local_room, cluster_address
from introspect_ray.storage import check_writable
from introspect_ray.tasks import load_cases, open_task


@dataclass(frozen=True)
class Prepared:
    """The checked inputs of a run: its policies on this machine, and its cases as tokens."""

    policy_path: str
    policy_id: str  # content hash
    second_id: str | None  # of the second policy of a mixed run
    train: CaseTable
    test: CaseTable
    tokenizer: Any
    max_model_len: int
    max_explanation_tokens: int
    cache_uri: str
    auxiliary: AuxiliaryTable | None = None  # None: no auxiliary data, or none is needed


def prepare(cfg: RunConfig, *, engines: bool = True, training: bool = True) -> Prepared:
    """Resolve and check all inputs of a run. Raises UserError with the remedy; writes nothing but caches.

    engines: False where none will be started (a replay): neither engines nor the policies that only they would serve
    have to be here. training: False where nothing is trained (an evaluation): auxiliary data is not read.
    """
    open_task(cfg.task)  # refuses an unknown name before policies are looked for
    cache = cfg.cache_dir or f"{cfg.output_dir.rstrip('/')}/cache"
    second = cfg.supervision.second_policy if engines and cfg.supervision.rule == "mixed" else None
    trained = None if cfg.eval.policy is None or is_adapter(cfg.eval.policy) else cfg.eval.policy
    others = [name for name in (second, trained, *cfg.eval.against) if engines and name]
    for name in (cfg.policy, *others):
        check_policy(name)
    if cluster_address(cfg) is None:
        if engines:
            check_installed(cfg.rollout)
        check_local_room(cfg)
    train, test = load_cases(cfg.task)
    check_writable(cfg.output_dir)
    policy_path = local_policy(cfg.policy)
    tokenizer = load_tokenizer(policy_path)
    for other in others:
        _check_same_tokens(tokenizer, policy_path, local_policy(other))
    tables = [
        CaseTable.build(tokenize_case(case, tokenizer, cfg.task.answer_prefix) for case in side)
        for side in (train, test)
    ]
    if cfg.rollout.served_by == "vllm":
        label_ids = ([t for (t,) in answers.label_tokens] for table in tables for answers in table.answers)
        check_vllm_limits(label_ids, cfg.lora_rank if cfg.method == "lora" else 0)
    return Prepared(
        policy_path=policy_path,
        policy_id=policy_id(policy_path),
        second_id=policy_id(local_policy(second)) if second else None,
        train=tables[0],
        test=tables[1],
        tokenizer=tokenizer,
        max_model_len=model_len(cfg, tables),
        max_explanation_tokens=_new_tokens(cfg, tables),
        cache_uri=cache,
        auxiliary=read_auxiliary(cfg.auxiliary, tokenizer, policy_path) if engines and training else None,
    )


def _check_same_tokens(tokenizer: Any, path: str, other: str) -> None:
    """Refuse policies of different tokenizers: they exchange token ids, which would stand for different text."""
    theirs = load_tokenizer(other)
    for what, same in (
        ("vocabulary", tokenizer.get_vocab() == theirs.get_vocab()),
        ("chat template", tokenizer.chat_template == theirs.chat_template),
    ):
        if not same:
            raise UserError(f"policy {other!r} has another {what} than {path!r}: use two policies of one tokenizer")


def _new_tokens(cfg: RunConfig, tables: Sequence[CaseTable]) -> int:
    return cfg.eval.max_new_tokens or max(table.longest_explanation for table in tables)


def model_len(cfg: RunConfig, tables: Sequence[CaseTable]) -> int:
    """Tokens of the longest sequence that an engine sees (x and its answer, or q and its explanation), rounded up to a
    multiple of 32, unless rollout.max_model_len is given. Raises UserError if that is too small."""
    new_tokens = _new_tokens(cfg, tables)
    need = max(max(table.longest_sequence + 1, table.longest_question + new_tokens) for table in tables)
    given = cfg.rollout.max_model_len
    if given is not None and given < need:
        raise UserError(
            f"rollout.max_model_len={given}, but the longest case needs {need} tokens: raise it or leave it out"
        )
    return given or -(-need // 32) * 32
