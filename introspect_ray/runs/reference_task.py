"""M0's reference distribution is computed once per sweep, by a Ray task where a training worker will be."""

from __future__ import annotations

from typing import Any

import ray

from introspect_ray.actors.status import activity
from introspect_ray.actors.trial_group import TrialGroup
from introspect_ray.cases.table import CaseTable
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import reference_policy, trainer_gpus
from introspect_ray.policy import local_policy
from introspect_ray.runs.preflight import Prepared


def start_reference(cfg: RunConfig, prepared: Prepared, train: Any, m0: Any, group: TrialGroup, status: Any) -> Any:
    """The future of M0's reference cache; None for a live reference. m0: a ref of its pairs, or None. status: handle of
    a StatusBoard, which hears how far it is."""
    if cfg.train.reference == "live":
        return None
    options = (cfg.train.dtype, cfg.train.token_budget)
    m0_policy = reference_policy(cfg) or cfg.policy
    task = _reference_task(cfg).options(scheduling_strategy=group.anywhere())
    return task.remote(m0_policy, train, m0, prepared.cache_uri, *options, status)


def _reference_task(cfg: RunConfig) -> Any:
    """build_reference as a Ray task with the resources of one training worker."""

    def build(policy: str, cases: CaseTable, m0: Any, cache_uri: str, dtype: str, budget: int, status: Any) -> str:
        import torch

        from introspect_ray.training.reference import build_reference

        torch.set_num_threads(cfg.train.threads)
        options = (dtype, budget, cfg.train.attention)
        with activity(status, f"reference of {policy}", len(cases), "case") as advance:
            return build_reference(local_policy(policy), cases, m0, cache_uri, *options, advance)

    return ray.remote(num_cpus=cfg.train.num_cpus, num_gpus=trainer_gpus(cfg))(build)
