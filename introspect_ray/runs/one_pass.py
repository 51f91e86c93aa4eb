"""M0's labels of the training cases and its reference in one pass over the training cases, where one serves both.

                  where one pass serves both                      elsewhere
    ------------------------------------------------------------------------------------------------
    training cases  the pass: labels and hidden states             the engine: labels; then or meanwhile
                                                                    a pass of its own: hidden states
    held-out cases  the engine, while the pass goes on              the engine
    explanations    the engine, while the pass goes on              the engine, after its labels

The engine also labels a few training cases: it must say of them what the pass says (`check_engine`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import ray

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import Serving
from introspect_ray.actors.status import activity
from introspect_ray.actors.trial_group import TrialGroup
from introspect_ray.actors.weight_sync import Tolerance, off_by, probe_tolerance
from introspect_ray.cases.lookup import records_of
from introspect_ray.config import RunConfig
from introspect_ray.config.compatibility import trainer_gpus
from introspect_ray.config.load import cluster_address
from introspect_ray.config.m0_labels import why_engine_labels
from introspect_ray.errors import AlarmError
from introspect_ray.labels.label_sets import save_pairs
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.labels.reading import first_reading
from introspect_ray.policy import local_policy
from introspect_ray.records import BehaviorPair
from introspect_ray.runs.kept_sets import labels_there, pass_set
from introspect_ray.runs.pass_team import Options, RayTeam, work_off
from introspect_ray.runs.policy_cases import PolicyCases
from introspect_ray.runs.preflight import Prepared
from introspect_ray.storage import open_store

_log = logging.getLogger(__name__)


def first_asked(train: int, group: int) -> int:
    """The first training case that the engine labels as well as the pass. Pure.

    train: how many training cases there are. group: rollout.bulk_group. From there on the engine gets training and
    held-out cases in the groups in which it would get them if it labelled all, so that the held-out ones keep their
    bits. Example: of 100 cases in groups of 64 those from 64 on; of 128 likewise.
    """
    return max(train - 1, 0) // group * group


class Made(NamedTuple):
    """What a finished pass gives: all pairs, raw, and the reference; share of the engine's prompt tokens that its
    prefix cache held."""

    pairs: PairTable
    reference: str
    hit_rate: float | None


@dataclass(frozen=True)
class OnePass:
    """A pass under way. future: of (the reference, the PairTable of the training cases, the folder of its parts)."""

    cfg: RunConfig
    tokens: PolicyCases
    cache_uri: str
    name: str  # of the label set
    future: Any

    def asked(self, pool: RolloutPool) -> list[BehaviorPair]:
        """What the engine answers: to some training cases, then to the held-out ones."""
        ids, group = self.tokens.train.case_ids, self.cfg.rollout.bulk_group
        some = [ids[row] for row in range(first_asked(len(ids), group), len(ids))]
        return pool.label_now([*some, *self.tokens.test.case_ids], Serving())

    def finish(self, asked: Sequence[BehaviorPair], hit_rate: float | None) -> Made:
        """Wait for the pass, compare, and put the label set into the cache. asked: as `asked` gave it.

        Raises AlarmError where the engine does not say what the pass says.
        """
        reference, train, parts = ray.get(self.future)
        held_out = len(self.tokens.test)
        sample, test = asked[: len(asked) - held_out], asked[len(asked) - held_out :]
        check_engine(self.cfg, records_of(train.by_id, [pair.case_id for pair in sample]), sample)
        pairs = PairTable.from_batches(chain(train.batches, PairTable.build(test).batches))
        save_pairs(self.cache_uri, self.name, pairs)
        open_store(self.cache_uri).delete_prefix(parts)
        return Made(pairs, reference, hit_rate)


def check_engine(cfg: RunConfig, ours: Sequence[BehaviorPair], theirs: Sequence[BehaviorPair]) -> None:
    """Raises AlarmError where the label logprobs of the engine (theirs) are not those of the pass on the same cases.

    They may differ as much as alarms.engine_gap allows (null: nothing is compared), or as the probe of a delivery may
    (in bfloat16 that is more): in the root mean square, and each.
    """
    bound = cfg.alarms.engine_gap
    flat = [
        [value for pair in pairs for value in (*pair.cued_logprobs, *pair.ablated_logprobs)] for pairs in (ours, theirs)
    ]
    if bound is None or not flat[0]:
        return
    typical, worst = off_by(*flat)
    allowed = Tolerance(*(max(bound, nats) for nats in probe_tolerance(cfg)))
    if allowed.allows(typical, worst):
        return
    raise AlarmError(
        f"M0's label logprobs on {len(theirs)} training cases differ between engine and trainer by {worst:.3g} nats at "
        f"most and {typical:.3g} in the root mean square; allowed are {allowed.single:g} and {allowed.typical:g}: the "
        "engine does not serve the policy that is trained. If both are right and differ by rounding alone, raise "
        "alarms.engine_gap"
    )


def start_pass(
    cfg: RunConfig,
    prepared: Prepared,
    tokens: PolicyCases,
    key: Callable[[], str],
    train: Any,
    group: TrialGroup,
    status: Any,
) -> OnePass | None:
    """Start the pass over the training cases; None where the engine labels them, or the cache has their labels.

    key: gives the name that the engine's label set would have. train: a ref of the training cases. status: handle of a
    StatusBoard, which hears how far it is.
    """
    why = why_engine_labels(cfg, tokens.free_text)
    name = key() if why is None else ""
    if name and labels_there(cfg, prepared.cache_uri, name):
        why = "the cache has a label set"
    if why is not None:
        _log.info("M0's labels are no part of the pass that makes its reference: %s", why)
        return None
    _log.info("M0's labels of %d training cases are read off the pass that makes its reference", len(tokens.train))
    task = _pass_task(cfg).options(scheduling_strategy=group.anywhere())
    future = task.remote(cfg.policy, [train], prepared.cache_uri, helper_options(cfg, group), status)
    return OnePass(cfg, tokens, prepared.cache_uri, pass_set(cfg, name), future)


def helper_options(cfg: RunConfig, group: TrialGroup) -> list[Options]:
    """Ray's options of the processes that may share a pass: where the other training workers will be, and, if all is
    computed on CPUs, one per engine, which has little to do meanwhile. On one machine no more than it has cores for."""
    place: Options = {"scheduling_strategy": group.anywhere()}
    worker: Options = {**place, "num_cpus": cfg.train.num_cpus, "num_gpus": trainer_gpus(cfg)}
    on_cpus = group.workers and not cfg.train.use_gpu and not cfg.rollout.num_gpus
    beside = cfg.rollout.num_actors if on_cpus else 0
    found = [worker] * max(group.workers - 1, 0) + [{**place, "num_cpus": 0}] * beside
    if cluster_address(cfg) is None and not cfg.train.use_gpu:
        found = found[: max((os.cpu_count() or 1) // cfg.train.threads - 1, 0)]
    return found


def _pass_task(cfg: RunConfig) -> Any:
    """The pass as a Ray task with the resources of one training worker."""

    def run(
        policy: str, train: list[Any], cache_uri: str, helpers: Sequence[Options], status: Any
    ) -> tuple[str, PairTable, str]:
        began = time.perf_counter()
        import torch

        from introspect_ray.training.behavior_pass import BehaviorPass

        torch.set_num_threads(cfg.train.threads)
        cases = ray.get(train[0])
        how = (cache_uri, cfg.train.dtype, cfg.train.token_budget, cfg.train.attention)
        work = BehaviorPass(local_policy(policy), cases, *how)
        missing, team = work.missing(), RayTeam(helpers, (cfg.train.threads, policy, train, *how))
        if len(missing) < len(work.parts):
            _log.info("%d of %d parts of the pass are there", len(work.parts) - len(missing), len(work.parts))
        left = sum(part.cases for part in missing)
        try:
            with activity(status, f"labels and reference of {policy}", left, "case") as advance:
                work.load()
                work_off(work, missing, team, time.perf_counter() - began, advance)
                pairs = PairTable.build(work.pairs())
                reading = first_reading(cfg.task.calibration, pairs.by_id, cases.labels, "")
                return work.reference(pairs.read_by(reading, cases.labels).by_id), pairs, work.folder
        finally:
            team.close()

    return ray.remote(num_cpus=cfg.train.num_cpus, num_gpus=trainer_gpus(cfg))(run)
