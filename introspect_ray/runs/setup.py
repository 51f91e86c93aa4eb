"""What all trials of a sweep share, made once: engines, M0's labels and explanations, its reference cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import ray

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import EngineSpec, Serving
from introspect_ray.actors.trial_group import TrialGroup
from introspect_ray.cases.lookup import records_of
from introspect_ray.config import RunConfig, override
from introspect_ray.config.compatibility import reference_policy, weight_transfer
from introspect_ray.judges import JudgeReport, Judging
from introspect_ray.labels.label_sets import label_set_key, save_pairs
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.labels.reading import Reading, first_reading
from introspect_ray.labels.reports import save_report
from introspect_ray.records import BehaviorPair
from introspect_ray.runs.activities import open_board
from introspect_ray.runs.evaluated import Behavior, Said, behavior_of, evaluated_cases
from introspect_ray.runs.explained import explain_m0
from introspect_ray.runs.judging import start_judging
from introspect_ray.runs.kept_sets import kept_labels
from introspect_ray.runs.one_pass import Made, OnePass, start_pass
from introspect_ray.runs.placement import bundles, engine_resources, set_up_config, set_up_in_group
from introspect_ray.runs.policy_cases import PolicyCases, one_token
from introspect_ray.runs.preflight import Prepared
from introspect_ray.runs.progress import shown_activities
from introspect_ray.runs.reference_task import start_reference
from introspect_ray.runs.waiting import watched
from introspect_ray.scores.evaluated_cases import M0, POLICY, REFERENCE, SECOND, TEST, EvaluatedCases
from introspect_ray.scores.evaluation import evaluate
from introspect_ray.scores.metrics import Finding, collapse

GROUPS_AT_ONCE = 256  # groups of M0's labels that wait for an engine or to be put into the table
PLAIN = {"method": "full", "train.reference": "cache", "rollout.weight_transfer": "object_store"}  # no adapter


@dataclass(frozen=True)
class SharedSetup:
    """What all trials of a sweep share: engines, M0's labels, its reference cache. Picklable."""

    prepared: Prepared
    pool: RolloutPool
    group: TrialGroup  # where the engines of `pool` are, and the training workers
    turns: Any  # a trial_slots.Turns: trials share `pool` and score on it one after another; None: it is one trial's
    status: Any  # handle of a StatusBoard
    reference_path: str | None  # None: a live reference
    m0: Any  # ref of Mapping[case id, BehaviorPair], training and test cases; of the reference policy
    untrained: EvaluatedCases  # the test cases with what all policies do and say before training
    second: Mapping[str, BehaviorPair] | None  # the second policy's, for mixed supervision
    reading: Reading  # how all pairs were read, and are to be read
    judged: list[dict[str, Any]]  # what judges made of the free text of each policy's label set
    train: Any  # ref of the training cases, a CaseTable
    auxiliary: Any  # ref of the AuxiliaryTable; None without auxiliary data
    prefix_hit_rate: float | None  # of labelling with M0; None where its labels were cached
    seconds: dict[str, float]  # spent here, by "setup" and "eval"

    def close(self) -> None:
        """End the engines and give their resources back, and those of the training workers."""
        self.pool.close()
        self.group.remove()

    @property
    def m0_test(self) -> Sequence[BehaviorPair]:
        """M0's pairs of all held-out cases."""
        return self.untrained.pairs[self.untrained.orig]

    @property
    def m0_reported(self) -> Sequence[BehaviorPair]:
        """M0's pairs of the held-out cases of the test split, which Orig is scored against."""
        return self.untrained.of(TEST).pairs[self.untrained.orig]


def set_up(cfg: RunConfig, prepared: Prepared) -> SharedSetup:
    """Start the pool, label all cases with M0 and cache its reference distribution. Once per sweep (see
    search_space.shared_config). `SharedSetup.close` gives back what it holds."""
    group = make_group(set_up_config(cfg))
    try:
        with shown_activities(open_board(cfg)) as status:
            return _set_up(cfg, prepared, status, group)
    except BaseException:
        group.remove()  # Ray would keep it as long as this process is connected
        raise


def _set_up(cfg: RunConfig, prepared: Prepared, status: Any, group: TrialGroup) -> SharedSetup:
    began = time.perf_counter()
    train, test = ray.put(prepared.train), ray.put(prepared.test)
    own, judging = prepared.tokens_of(cfg.policy), start_judging(cfg, prepared)
    key = partial(label_set, cfg, own, prepared.policy_id, judging)
    once = start_pass(cfg, prepared, own, key, train, group, status)
    # Where every response is one token it does not matter which, so the reference is made while the engines start.
    early = one_token(prepared.train) and once is None
    reference = start_reference(cfg, prepared, train, None, group, status) if early else None
    pool = start_pool(cfg, cfg.policy, own, cfg.lora_rank, [train, test], judging, group.engine_places())
    pool.board = status
    with watched(status, "set-up", pool.engines.waits):
        pool.wait()
        ready = time.perf_counter()
        made, explanations = during_pass(cfg, prepared, once, pool) if once else (None, None)
        before = behaviors_before(cfg, prepared, pool, group, made)
        hit_rate = made.hit_rate if made else pool.prompt_tokens.hit_rate
        m0 = ray.put(before.m0.by_id)
        if not early and made is None:
            reference = start_reference(cfg, prepared, train, m0, group, status)
        explanations = explanations or explain_m0(cfg, prepared, pool)
    evaluated = time.perf_counter()
    return SharedSetup(
        prepared=prepared,
        pool=pool,
        group=group,
        turns=None,
        status=status,
        reference_path=made.reference if made else ray.get(reference) if reference else None,
        m0=m0,
        untrained=evaluated_cases(cfg, prepared.test, {**before.held_out, POLICY: before.held_out[M0]}, explanations),
        second=before.second.by_id if before.second else None,
        reading=before.reading,
        judged=before.judged,
        train=train,
        auxiliary=ray.put(prepared.auxiliary) if prepared.auxiliary is not None else None,
        prefix_hit_rate=hit_rate,
        seconds={"setup": ready - began, "eval": evaluated - ready},
    )


def make_group(cfg: RunConfig, *, trainers: bool = True, engines: bool = True) -> TrialGroup:
    """The placement group of one trial, or of a part of it. Does not wait for room."""
    count = cfg.rollout.num_actors if engines and engine_resources(cfg) else 0
    workers = cfg.train.max_workers if trainers and not cfg.train.elastic else 0
    return TrialGroup.make(bundles(cfg, trainers=bool(workers), engines=engines), workers, count)


def untrained_scores(setup: SharedSetup) -> dict[str, Any]:
    """Metrics of the policy before training: Self and Orig coincide, unless there is another reference policy."""
    return evaluate(setup.untrained)


def findings(setup: SharedSetup) -> list[Finding]:
    """What makes M0 a weak subject (collapsed labels, a limitation that the paper names), with the numbers."""
    return collapse(setup.m0_test)


@dataclass(frozen=True)
class Before:
    """All that is known of behaviour before training.

    m0: pairs of the reference policy (M0 itself if there is no other) on training and test cases. second: likewise of
    the second policy of a mixed run. held_out: by policy, the test cases.
    """

    m0: PairTable
    second: PairTable | None
    reading: Reading
    held_out: dict[str, Behavior]
    judged: list[dict[str, Any]]


def during_pass(cfg: RunConfig, prepared: Prepared, once: OnePass, pool: RolloutPool) -> tuple[Made, list[Said]]:
    """What the engine does while the training cases are labelled: held-out cases, a sample, and explanations."""
    asked = once.asked(pool)
    hit_rate = pool.prompt_tokens.hit_rate
    explanations = explain_m0(cfg, prepared, pool)
    return once.finish(asked, hit_rate), explanations


def behaviors_before(
    cfg: RunConfig, prepared: Prepared, pool: RolloutPool, group: TrialGroup, made: Made | None
) -> Before:
    """pool: serves cfg.policy as it is before training. Other policies have engines of their own, one at a time, where
    training workers of the group will be, if they fit. made: M0's pairs, if one pass gave them."""
    own, judging = prepared.tokens_of(cfg.policy), pool.judging
    places = [group.anywhere()] if set_up_in_group(cfg) else []
    other, second_policy = reference_policy(cfg), cfg.supervision.second_policy
    judged: list[dict[str, Any]] = []
    if other is None:
        raw = made.pairs if made else labelled(cfg, own, pool, prepared.policy_id, prepared.cache_uri)
        raw_test: Sequence[BehaviorPair] = records_of(raw.by_id, prepared.test.case_ids)
    else:
        raw = labelled_apart(cfg, prepared, other, prepared.reference_id, judging, judged, places)
        raw_test = pool.label_now(prepared.test.case_ids, Serving())
    judged += judged_of(cfg.policy, pool)
    reading = reading_of(cfg, prepared, raw.by_id, judging)
    m0 = raw.read_by(reading, own.labels)
    held_out = {M0: behavior_of(reading.pairs(raw_test, prepared.test.labels), own.tokenizer)}
    if other is not None:
        held_out[REFERENCE] = _held_out(prepared, other, m0)
    second = None
    if second_policy is not None and prepared.second_id is not None:
        theirs = labelled_apart(cfg, prepared, second_policy, prepared.second_id, judging, judged, places)
        second = theirs.read_by(reading, own.labels)
        held_out[SECOND] = _held_out(prepared, second_policy, second)
    return Before(m0, second, reading, held_out, judged)


def judged_of(who: str, pool: RolloutPool) -> list[dict[str, Any]]:
    """For summary.json: what the judges made of what `who` answered since the last call; empty without free text."""
    return judged_by_name(who, pool.take_judged())


def judged_by_name(who: str, report: JudgeReport | None) -> list[dict[str, Any]]:
    """The same of a report; empty for None."""
    return [{"policy": who, **report.summary()}] if report else []


def reading_of(cfg: RunConfig, prepared: Prepared, m0: Mapping[str, BehaviorPair], judging: Judging | None) -> Reading:
    """How all behaviours of a run are read. m0: the pairs of the reference policy as engines read them."""
    return first_reading(cfg.task.calibration, m0, prepared.train.labels, judging.identity if judging else "")


def _held_out(prepared: Prepared, policy: str, pairs: PairTable) -> Behavior:
    return behavior_of(records_of(pairs.by_id, prepared.test.case_ids), prepared.tokens_of(policy).tokenizer)


def start_pool(
    cfg: RunConfig,
    policy: str,
    tokens: PolicyCases,
    lora_rank: int,
    cases: Sequence[Any],
    judging: Judging | None,
    places: Sequence[Any] = (),
) -> RolloutPool:
    """A pool that answers for `cases`, refs of CaseTables, and judges their free responses.

    tokens: the cases as `policy` reads them. judging: of the run (`start_judging`), so that a judging policy is served
    once. places: see RolloutPool.
    """
    cfg = override(cfg, {"rollout.weight_transfer": weight_transfer(cfg)})  # engines need the choice, not "auto"
    spec = EngineSpec(policy, tokens.max_model_len, cfg.method, lora_rank, cfg.seed, judging)
    return RolloutPool(cfg, spec, cases, places)


def labelled(cfg: RunConfig, tokens: PolicyCases, pool: RolloutPool, policy_id: str, cache_uri: str) -> PairTable:
    """All pairs of a policy at version 0, as engines read them: from the cached label set, else from the pool."""
    key = label_set(cfg, tokens, policy_id, pool.judging)
    kept = kept_labels(cfg, cache_uri, key)
    if kept is not None:
        pairs, pool.judged = kept
    else:
        ids = chain(tokens.train.case_ids, tokens.test.case_ids)
        parts = iter(lambda: list(islice(ids, cfg.rollout.bulk_group * GROUPS_AT_ONCE)), [])
        with pool.reporting("labels", len(tokens.train) + len(tokens.test)):
            pairs = PairTable.build(pair for part in parts for pair in pool.label_now(part, Serving()))
        if pool.judged:
            save_report(cache_uri, key, pool.judged)  # first: a set without a report is of closed labels
        save_pairs(cache_uri, key, pairs)
    return pairs


def labelled_apart(
    cfg: RunConfig,
    prepared: Prepared,
    policy: str,
    policy_id: str,
    judging: Judging | None,
    judged: list[dict[str, Any]],
    places: Sequence[Any],
) -> PairTable:
    """The same by an engine of its own, which is started unless the label set is cached and closed afterwards.

    The cases are read with the policy's own tokenizer. What the judges made of them is added to `judged`. places: of
    the engine, see RolloutPool.
    """
    tokens = prepared.tokens_of(policy)
    key = label_set(cfg, tokens, policy_id, judging)
    kept = kept_labels(cfg, prepared.cache_uri, key)
    if kept is not None:
        judged += judged_by_name(policy, kept[1])
        return kept[0]
    plain = override(cfg, {"rollout.num_actors": 1, **PLAIN})
    pool = start_pool(plain, policy, tokens, 1, [ray.put(tokens.train), ray.put(tokens.test)], judging, places)
    pairs = labelled(cfg, tokens, pool, policy_id, prepared.cache_uri)
    judged += judged_of(policy, pool)
    pool.close()
    return pairs


def label_set(cfg: RunConfig, tokens: PolicyCases, policy_id: str, judging: Judging | None) -> str:
    """The name of a policy's label set in the cache. tokens: the cases as it reads them."""
    judge, cases = judging.key if judging else "", chain(tokens.train, tokens.test)
    return label_set_key(policy_id, cases, cfg.rollout, judge) + "-deterministic" * cfg.deterministic
