"""Starts what judges the free text of a run: its judges, and engines for judges that are local policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import EngineSpec
from introspect_ray.config import RunConfig, override
from introspect_ray.config.judges import JudgeConfig
from introspect_ray.judges import Judging, make_judging, refusal
from introspect_ray.judges.llm import MAX_TOKENS
from introspect_ray.judges.protocol import Complete
from introspect_ray.policy import load_tokenizer, local_policy, policy_id
from introspect_ray.records import Message
from introspect_ray.runs.placement import judging_policies
from introspect_ray.runs.policy_cases import context_length
from introspect_ray.runs.preflight import Prepared

# For an engine that serves a whole policy and never gets other weights.
_PLAIN = {
    "method": "full",
    "train.reference": "cache",
    "rollout.num_actors": 1,
    "rollout.weight_transfer": "object_store",
}
_TEMPLATE_TOKENS = 32  # a bound on what a chat template adds to one user turn


def start_judging(cfg: RunConfig, prepared: Prepared) -> Judging | None:
    """The judges of the run; None if no case is answered in free text.

    A judging policy gets an engine of the kind that serves the run (rollout.engine), which starts meanwhile and lives
    as long as anything holds the Judging.
    """
    if not prepared.tokens_of(cfg.policy).free_text:
        return None
    policies = {name: _serve(cfg, name, judges, prepared) for name, judges in judging_policies(cfg).items()}
    return make_judging(cfg.judge, prepared.cache_uri, policies)


def judging_key(cfg: RunConfig, prepared: Prepared) -> str:
    """Judging.key of the run, without its engines; "" if no case is answered in free text."""
    judging = named_judging(cfg, prepared)
    return judging.key if judging else ""


def named_judging(cfg: RunConfig, prepared: Prepared) -> Judging | None:
    """The judges of the run for their identities alone: no engine is started for a judging policy."""
    if not prepared.tokens_of(cfg.policy).free_text:
        return None
    policies = {name: (_no_engine, policy_id(local_policy(name))) for name in judging_policies(cfg)}
    return make_judging(cfg.judge, prepared.cache_uri, policies)


def _no_engine(chats: Sequence[tuple[Message, ...]], max_tokens: int) -> list[str]:
    raise RuntimeError("these judges were made for their identities alone: no engine serves the judging policy")


def _serve(cfg: RunConfig, name: str, judges: Sequence[JudgeConfig], prepared: Prepared) -> tuple[Complete, str]:
    """What answers the chats of all judges of one policy, and the policy's content hash."""
    folder = local_policy(name)
    longest = max(_chat_len(cfg, judge, folder, prepared) for judge in judges)
    spec = EngineSpec(name, longest, "full", 1, cfg.seed, chats=True)
    return RolloutPool(override(cfg, _PLAIN), spec, []).chat_now, policy_id(folder)


def _chat_len(cfg: RunConfig, judge: JudgeConfig, folder: str, prepared: Prepared) -> int:
    """Most tokens of a judge's chat and its answer, rounded up to a multiple of 32, but at most the judge's context.

    A prompt with its response has at most prepared.max_model_len tokens; another tokenizer may need twice as many.
    rollout.max_model_len, if given, raises the limit.
    """
    instruction = Path(judge.instruction).read_text(encoding="utf-8") if judge.instruction else refusal.INSTRUCTION
    own = len(load_tokenizer(folder)(instruction)["input_ids"]) + _TEMPLATE_TOKENS + MAX_TOKENS
    need = max(own + 2 * prepared.max_model_len, cfg.rollout.max_model_len or 0)
    rounded, context = -(-need // 32) * 32, context_length(folder)
    return rounded if context is None else min(rounded, context)


def doubts(judged: Sequence[dict[str, Any]]) -> list[str]:
    """One line for every set of replies on which two judges differ, or on which the second one often says nothing.

    judged: the block "judges" of summary.json.
    """
    lines = []
    for one in judged:
        found = one["agreement"]
        if found and (found["disagreements"] or found["unjudged"][1]):
            lines.append(
                f"{one['policy']}: the two judges differ on {found['disagreements']} of {found['compared']} replies; "
                f"the second gave no verdict on {found['unjudged'][1]} of {found['replies']} (summary.json, judges)"
            )
    return lines
