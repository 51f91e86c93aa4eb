"""Everything that can be refused before anything heavy starts: policies, cases, tokens, stores, room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from introspect_ray.cases.auxiliary_table import AuxiliaryTable
from introspect_ray.cases.table import CaseTable
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import reference_policy
from introspect_ray.config.effect import without_effect
from introspect_ray.config.judges import JudgeConfig
from introspect_ray.config.load import cluster_address
from introspect_ray.engines import check_installed
from introspect_ray.engines.checks import architectures, eos_token_ids
from introspect_ray.errors import UserError
from introspect_ray.judges import check_judge
from introspect_ray.policy import (
    BUNDLED,
    check_adapter,
    check_policy,
    check_weights,
    is_adapter,
    load_tokenizer,
    local_policy,
    policy_id,
)
from introspect_ray.runs.answers import check_cluster, check_store
from introspect_ray.runs.auxiliary import read_auxiliary
from introspect_ray.runs.placement import check_local_room, judging_policies
from introspect_ray.runs.policy_cases import PolicyCases, read_cases, tokenize_cases
from introspect_ray.schedule import idle_warning
from introspect_ray.storage.reach import check_tracking
from introspect_ray.tasks import CaseStream, open_task

LARGE_STEP = 0.1  # of AdamW; the weights of language models are smaller


@dataclass(frozen=True)
class Prepared:
    """The checked inputs of a run: its policies on this machine, and its cases as tokens."""

    policy_path: str
    policy_id: str  # content hash
    reference_path: str  # of reference_policy; policy_path if that is no other
    reference_id: str
    second_id: str | None  # of the second policy of a mixed run
    train: CaseTable
    test: CaseTable
    tokenizer: Any
    max_model_len: int
    max_explanation_tokens: int
    cache_uri: str
    others: Mapping[str, PolicyCases] = field(default_factory=dict)  # of each other policy that answers, by its name
    auxiliary: AuxiliaryTable | None = None  # None: no auxiliary data, or none is needed

    def tokens_of(self, policy: str) -> PolicyCases:
        """The cases as tokens of a policy of the config; of one that is not named there (an adapter of M0) as M0's."""
        own = PolicyCases(self.train, self.test, self.tokenizer, self.max_model_len, self.max_explanation_tokens)
        return self.others.get(policy, own)


def doubts(trials: Sequence[RunConfig]) -> list[str]:
    """One line on each thing that is allowed and likely not meant, in a run or in the trials of a sweep."""
    idle = {line for cfg in trials if (line := idle_warning(cfg))}
    large = {cfg.learning_rate for cfg in trials if cfg.learning_rate > LARGE_STEP}
    steps = [f"learning_rate={rate:g} moves every weight by about as much at every step: lower it" for rate in large]
    return [*without_effect(trials), *sorted(steps), *sorted(idle)]


def prepare(cfg: RunConfig, *, engines: bool = True, training: bool = True) -> Prepared:
    """Resolve and check all inputs of a run. Raises UserError with the remedy; writes nothing but caches.

    engines: False where none will be started (a replay): neither engines nor the policies that only they would serve
    have to be here. training: False where nothing is trained (an evaluation): auxiliary data is not read.
    """
    open_task(cfg.task)  # refuses an unknown name before policies are looked for
    if training and cfg.tracking.backend == "mlflow" and cfg.tracking.uri is not None:
        check_tracking(cfg.tracking.uri)
    cache = cfg.cache_dir or f"{cfg.output_dir.rstrip('/')}/cache"
    second = cfg.supervision.second_policy if engines and cfg.supervision.rule == "mixed" else None
    trained = None if cfg.eval.policy is None or is_adapter(cfg.eval.policy) else cfg.eval.policy
    reference = reference_policy(cfg)
    answering = (reference, second, trained, *cfg.eval.against)
    others = [name for name in answering if engines and name and name != cfg.policy]
    judging = list(judging_policies(cfg)) if engines else []
    named = list(dict.fromkeys((cfg.policy, *others, *([reference] if reference else []), *judging)))
    for name in named:
        check_policy(name)
    if cfg.eval.policy is not None and is_adapter(cfg.eval.policy):
        check_adapter(cfg.eval.policy)
    _check_machine(cfg, engines)
    sides = read_cases(cfg)
    _check_stores(cfg)
    policy_path = local_policy(cfg.policy)
    own = tokenize_cases(cfg, sides, policy_path, load_tokenizer(policy_path))
    if reference:
        _check_same_tokens(own.tokenizer, cfg.policy, reference)
    _check_task(cfg, own)
    _check_weights(named, {cfg.policy, reference} if training else set())
    if engines and own.free_text:
        check_judge(cfg.judge)
    reference_path = local_policy(reference) if reference else policy_path
    return Prepared(
        policy_path=policy_path,
        policy_id=policy_id(policy_path),
        reference_path=reference_path,
        reference_id=policy_id(reference_path),
        second_id=policy_id(local_policy(second)) if second else None,
        train=own.train,
        test=own.test,
        tokenizer=own.tokenizer,
        max_model_len=own.max_model_len,
        max_explanation_tokens=own.max_explanation_tokens,
        cache_uri=cache,
        auxiliary=read_auxiliary(cfg.auxiliary, own.tokenizer, policy_path) if training else None,
        others={name: _other_cases(cfg, sides, name, own) for name in dict.fromkeys(others)},
    )


def _check_machine(cfg: RunConfig, engines: bool) -> None:
    """Refuse what the cluster, or this machine, cannot do: no answer, no engine installed, no room."""
    address = cluster_address(cfg)
    if address is None:
        if engines:
            check_installed(cfg.rollout)
        check_local_room(cfg)
    elif engines:  # a replay is one process of this machine
        check_cluster(address, "ray_address" if cfg.ray_address else "RAY_ADDRESS")


def _check_stores(cfg: RunConfig) -> None:
    for key, uri in (("output_dir", cfg.output_dir), ("cache_dir", cfg.cache_dir)):
        if uri is not None:
            check_store(key, uri)


def _check_weights(policies: Sequence[str], learned: set[str | None]) -> None:
    """Refuse policies whose files engines or the learner could not use. learned: those that the learner loads."""
    for name in policies:
        if name not in BUNDLED:  # a part of this package
            path = local_policy(name)
            check_weights(path, name, trained=name in learned)
            eos_token_ids(path)
            architectures(path)


def _other_cases(cfg: RunConfig, sides: tuple[CaseStream, CaseStream], name: str, own: PolicyCases) -> PolicyCases:
    """The cases as tokens of another policy, whose errors name it. With M0's tokenizer they share M0's tables."""
    path = local_policy(name)
    theirs = load_tokenizer(path)
    try:
        if _difference(own.tokenizer, theirs) is None:
            return own.served_by(cfg, path)
        return tokenize_cases(cfg, sides, path, theirs)
    except UserError as error:
        raise UserError(f"policy {name!r}: {error}") from None


def _check_task(cfg: RunConfig, cases: PolicyCases) -> None:
    """Refuse display texts for labels that no case has, calibration without its offsets, a judge where nothing is free
    text, and more shots than there are training cases."""
    answers = (*cases.train.answers, *cases.test.answers)
    if cfg.task.calibration != "none":
        _check_calibration(cfg, cases)
    if cfg.judge != JudgeConfig() and not cases.free_text:
        raise UserError(
            "judge.* has no effect, since no case is answered in free text: leave it out, or give cases with "
            '"response": {"kind": "free"}'
        )
    known = {label for used in answers for label in used.labels}
    foreign = sorted(set(cfg.task.label_names) - known)
    if foreign:
        raise UserError(
            f"task.label_names has {foreign[0]!r}, which is a label of no case: the labels are "
            f"{', '.join(sorted(known)[:20])}"
        )
    if cfg.task.shots > len(cases.train):
        raise UserError(f"task.shots={cfg.task.shots}, but there are only {len(cases.train)} training cases: lower it")


def _check_calibration(cfg: RunConfig, cases: PolicyCases) -> None:
    """Refuse calibration where all is free text, and where held-out cases have labels of which there are no offsets."""
    trained, tested = (
        {used.labels for used in side.answers if used.label_tokens} for side in (cases.train, cases.test)
    )
    if not trained and not tested:
        raise UserError(
            f"task.calibration={cfg.task.calibration} is for closed labels, and all {len(cases.train)} training cases "
            "have free text: set task.calibration=none"
        )
    if unknown := sorted(tested - trained):
        raise UserError(
            f"task.calibration={cfg.task.calibration} takes its offsets from the training cases, and none of them has "
            f"the labels {list(unknown[0])} of a held-out case: set task.calibration=none, or give training cases with "
            "these labels in this order"
        )


def _check_same_tokens(tokenizer: Any, policy: str, reference: str) -> None:
    """Refuse a reference policy of another tokenizer: the KL compares its distribution over the vocabulary."""
    what = _difference(tokenizer, load_tokenizer(local_policy(reference)))
    if what:
        raise UserError(
            f"reference_policy={reference} has another {what} than policy={policy}, but the KL compares the two token "
            "by token: take policies of one tokenizer and chat template"
        )


def _difference(ours: Any, theirs: Any) -> str | None:
    """What makes two tokenizers give other tokens for a case; None if they give the same."""
    if ours.get_vocab() != theirs.get_vocab():
        return "vocabulary"
    return None if ours.chat_template == theirs.chat_template else "chat template"
