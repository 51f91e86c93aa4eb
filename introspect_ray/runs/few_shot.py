"""Few-shot prompting of an untrained policy (task.shots, paper fig. 11): explained training cases before each q."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from introspect_ray.cases.few_shot import few_shot_messages, shots_of
from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError
from introspect_ray.records import BehaviorPair
from introspect_ray.runs.policy_cases import PolicyCases, read_cases


def few_shot_cases(
    cfg: RunConfig, tokens: PolicyCases, label: Callable[[list[str]], Sequence[BehaviorPair]]
) -> PolicyCases:
    """The cases as the policy of `tokens` reads them, with task.shots explained training cases before each q.

    label: what the policy answers on the training cases of these ids, so that the examples state its own E. Which cases
    they are follows from `seed` and the case alone. Raises UserError if they do not fit into the policy's context.
    """
    ids = tokens.train.case_ids
    shots = {one: shots_of(one, ids, cfg.task.shots, cfg.seed) for one in tokens.test.case_ids}
    needed = set(chain.from_iterable(shots.values()))
    truth = {pair.case_id: pair.explanation for pair in label([one for one in ids if one in needed])}
    train, test = read_cases(cfg)
    explained = {case.case_id: (case, truth[case.case_id]) for case in train if case.case_id in truth}
    table = CaseTable.build(
        tokenize_case(
            case,
            tokens.tokenizer,
            cfg.task.answer_prefix,
            few_shot_messages(case, [explained[one] for one in shots[case.case_id]]),
        )
        for case in test
    )
    need = table.longest_question + tokens.max_explanation_tokens
    if need > tokens.max_model_len:
        raise UserError(
            f"task.shots={cfg.task.shots}: the longest prompt and its explanation have {need} tokens, and "
            f"{tokens.max_model_len} fit: lower task.shots, or raise rollout.max_model_len as far as the policy allows"
        )
    return replace(tokens, test=table)
