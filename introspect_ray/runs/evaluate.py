"""Scores of a given policy against M0 and other policies, by engines of their own; no training."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import Serving
from introspect_ray.cases.lookup import records_of
from introspect_ray.cases.table import CaseTable
from introspect_ray.config import RunConfig, override
from introspect_ray.config.compatibility import reference_policy
from introspect_ray.judges import Judging
from introspect_ray.labels.reading import EVALUATED as EVALUATED_READING
from introspect_ray.labels.reading import Reading
from introspect_ray.policy import is_adapter, local_policy, merge_adapter, policy_id
from introspect_ray.records import BehaviorPair
from introspect_ray.runs.activities import open_board
from introspect_ray.runs.evaluated import Behavior, Said, behavior_of, evaluated_cases, write_cases
from introspect_ray.runs.explained import assess, explain, explain_m0, kept_explanations
from introspect_ray.runs.few_shot import few_shot_cases
from introspect_ray.runs.judging import start_judging
from introspect_ray.runs.kept_sets import kept_labels
from introspect_ray.runs.policy_cases import PolicyCases
from introspect_ray.runs.preflight import Prepared
from introspect_ray.runs.progress import shown_activities
from introspect_ray.runs.setup import (
    PLAIN,
    judged_by_name,
    judged_of,
    label_set,
    reading_of,
    start_pool,
)
from introspect_ray.scores.evaluated_cases import AGAINST, M0, POLICY, REFERENCE, TEST
from introspect_ray.scores.evaluation import against_scores, evaluate
from introspect_ray.scores.evaluation_table import EVALUATED
from introspect_ray.storage import Store, open_store


def evaluate_policies(cfg: RunConfig, prepared: Prepared, folder: str | None, store: Store) -> dict[str, Any]:
    """Scores of eval.policy (or adapter) on the held-out cases; each policy is served by a pool of its own.

    folder: eval.policy on this machine. store: of the results; the table of evaluated cases is written to it. Returns
    the scores of scores.evaluation.evaluate with M0 = cfg.policy (or reference_policy), and "against": the explanations
    scored against each policy of eval.against (A→B).
    """
    reference = reference_policy(cfg)
    # The tokenizer of eval.policy is that of its folder here; an adapter has M0's.
    own = cfg.policy if folder is None or is_adapter(folder) else folder
    asked = _Asked(cfg, prepared, start_judging(cfg, prepared))
    with _served(cfg, prepared, folder) as trained, shown_activities(open_board(cfg)) as asked.board:
        names = {M0: cfg.policy, **({REFERENCE: reference} if reference else {}), POLICY: trained}
        names |= {f"{AGAINST}{policy}": policy for policy in cfg.eval.against}
        for policy in dict.fromkeys([reference or cfg.policy, *names.values()]):
            tokens = prepared.tokens_of(own if policy == trained else policy)
            asked.ask(policy, tokens, explain_too=policy == trained)
    behaviors = {name: asked.behaviors[policy] for name, policy in names.items()}
    cases = write_cases(store, EVALUATED, evaluated_cases(cfg, prepared.test, behaviors, asked.explanations))
    if asked.reading:
        asked.reading.save(store, EVALUATED_READING)  # with the offsets by which the table's answers were read
    return {
        "base": cfg.policy,
        "cases": len(cases.of(TEST)),
        "calibration": asked.reading.summary if asked.reading else None,
        "judges": asked.judged or None,
        **evaluate(cases),
        "against": against_scores(cases),
    }


class _Asked:
    """What policies answer and explain on the held-out cases. The first one that is asked gives the calibration."""

    def __init__(self, cfg: RunConfig, prepared: Prepared, judging: Judging | None) -> None:
        self._cfg, self._prepared, self._judging = cfg, prepared, judging
        self.board: Any = None  # handle of a StatusBoard, which hears how far the engines are
        self.reading: Reading | None = None
        self.behaviors: dict[str, Behavior] = {}
        self.explanations: list[Said] = []
        self.judged: list[dict[str, Any]] = []

    def ask(self, policy: str, tokens: PolicyCases, *, explain_too: bool) -> None:
        """Start an engine for `policy`, and another one if its explanations are prompted with examples.

        What M0 and a policy that only answers do is taken from the cache, if their label set is there (of a run, or of
        `introspect-ray label`), and M0's explanations too: no engine is started then.
        """
        few_shot = explain_too and self._cfg.task.shots > 0
        askable = not explain_too or (policy == self._cfg.policy and not few_shot)  # of the cache
        if askable and self._kept(policy, tokens):
            if explain_too:
                self.explanations = self._explained_by_m0(tokens)
            else:
                print(f"cached   what {policy} answers: no engine is started for it", flush=True)
            return
        with _pool(self._cfg, policy, tokens, self._judging, self.board) as pool:
            if self.reading is None:
                calibrated = self._cfg.task.calibration != "none"
                raw = pool.label_now(tokens.train.case_ids, Serving()) if calibrated else []
                m0 = {pair.case_id: pair for pair in raw}
                self.reading = reading_of(self._cfg, self._prepared, m0, self._judging)
            if explain_too and not few_shot:
                of_test, self.explanations = assess(pool, tokens, Serving())
            else:
                of_test = pool.label_now(tokens.test.case_ids, Serving())
            read = self.reading.pairs(of_test, tokens.test.labels)
            self.behaviors[policy] = behavior_of(read, tokens.tokenizer)
            if few_shot:
                tokens = few_shot_cases(self._cfg, tokens, partial(self._shown, pool, tokens.train))
            self.judged += judged_of(policy, pool)
        if few_shot:  # engines keep the cases that they were started with
            with _pool(self._cfg, policy, tokens, self._judging, self.board) as pool:
                self.explanations = explain(pool, tokens, Serving())

    def _explained_by_m0(self, tokens: PolicyCases) -> list[Said]:
        """From the cache, or by an engine that is asked for explanations alone."""
        kept = kept_explanations(self._cfg, self._prepared)
        if kept is not None:
            print(f"cached   what {self._cfg.policy} answers and says: no engine is started for it", flush=True)
            return kept
        with _pool(self._cfg, self._cfg.policy, tokens, self._judging, self.board) as pool:
            return explain_m0(self._cfg, self._prepared, pool)

    def _kept(self, policy: str, tokens: PolicyCases) -> bool:
        """Take the pairs of a policy from the cache; whether they are there."""
        key = label_set(self._cfg, tokens, policy_id(local_policy(policy)), self._judging)
        kept = kept_labels(self._cfg, self._prepared.cache_uri, key)
        if kept is None:
            return False
        pairs, report = kept
        if self.reading is None:
            self.reading = reading_of(self._cfg, self._prepared, pairs.by_id, self._judging)
        held_out = self.reading.pairs(records_of(pairs.by_id, tokens.test.case_ids), tokens.test.labels)
        self.behaviors[policy] = behavior_of(held_out, tokens.tokenizer)
        self.judged += judged_by_name(policy, report)
        return True

    def _shown(self, pool: RolloutPool, table: CaseTable, case_ids: Sequence[str]) -> Sequence[BehaviorPair]:
        """Pairs of training cases, which are shown as examples."""
        assert self.reading is not None
        return self.reading.pairs(pool.label_now(case_ids, Serving()), table.labels)


@contextmanager
def _pool(
    cfg: RunConfig, policy: str, tokens: PolicyCases, judging: Judging | None, board: Any
) -> Iterator[RolloutPool]:
    """A pool that serves one policy. tokens: the cases as it reads them. board: handle of a StatusBoard."""
    pool = start_pool(override(cfg, PLAIN), policy, tokens, 1, [ray.put(tokens.train), ray.put(tokens.test)], judging)
    pool.board = board
    yield pool
    pool.close()


@contextmanager
def _served(cfg: RunConfig, prepared: Prepared, folder: str | None) -> Iterator[str]:
    """The policy to evaluate, by a name that every node can resolve. An adapter is merged into the cache meanwhile."""
    if folder is None or not is_adapter(folder):
        yield cfg.eval.policy or cfg.policy
        return
    store, name = open_store(prepared.cache_uri), f"evaluated/{uuid.uuid4().hex}"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            local = store.local_path(name)
            merge_adapter(prepared.policy_path, folder, str(local or scratch))
            if local is None:
                store.upload_dir(Path(scratch), name)
        yield store.join(name)
    finally:
        store.delete_prefix(name)
