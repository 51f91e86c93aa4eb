"""Who labels the training cases with M0: the engine, or the pass that makes M0's reference."""

from __future__ import annotations

from introspect_ray.config.compatibility import reference_policy
from introspect_ray.config.sections import RunConfig


def why_engine_labels(cfg: RunConfig, free_text: bool) -> str | None:
    """Why M0's labels of the training cases are the engine's; None if they are read off the pass that makes M0's
    reference, which computes the same forwards. Pure.

    free_text: whether any case is answered in free text.
    """
    if free_text:
        return "some cases are answered in free text, which the engine writes"
    if cfg.train.reference == "live":
        return "train.reference=live makes no reference beforehand"
    if reference_policy(cfg):
        return "reference_policy is not the policy that is trained"
    if cfg.rollout.dtype != cfg.train.dtype:
        return f"rollout.dtype={cfg.rollout.dtype} is not train.dtype={cfg.train.dtype}"
    return None
