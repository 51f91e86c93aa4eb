"""Scores of a policy while it trains: on the first cases of the dev split, from what the status board has of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray

from introspect_ray.actors.interim import Interim
from introspect_ray.cases.lookup import records_at
from introspect_ray.config import RunConfig
from introspect_ray.records import Answers
from introspect_ray.runs.evaluated import behavior_of, said, trained_cases
from introspect_ray.runs.results import tracked
from introspect_ray.runs.setup import SharedSetup
from introspect_ray.scores.evaluated_cases import DEV, TEST, EvaluatedCases
from introspect_ray.scores.evaluation import evaluate
from introspect_ray.storage.tracker import Tracker

OnScores = Callable[[int, dict[str, Any]], None]  # called with a step and the scores of its weights


def interim_rows(cfg: RunConfig, cases: EvaluatedCases) -> list[int]:
    """Which of the held-out cases are scored while a policy trains: the first of the dev split; all, where none is."""
    dev = [row for row, split in enumerate(cases.splits) if split == DEV]
    return (dev or list(range(len(cases))))[: cfg.eval.interim_cases]


def interim_of(cfg: RunConfig, setup: SharedSetup, run_name: str) -> Interim | None:
    """What the training workers ask while they train; None: nothing."""
    if not cfg.eval.every:
        return None
    ids = [setup.untrained.case_ids[row] for row in interim_rows(cfg, setup.untrained)]
    return Interim(ids, setup.prepared.tokens_of(cfg.policy).max_explanation_tokens, setup.status, run_name)


def interim_scores(cfg: RunConfig, setup: SharedSetup, answers: Answers) -> dict[str, Any]:
    """The blocks of scores.evaluation.evaluate over these cases alone."""
    rows, tokens = interim_rows(cfg, setup.untrained), setup.prepared.tokens_of(cfg.policy)
    test = records_at(tokens.test, rows)
    pairs = setup.reading.pairs(answers.pairs, tokens.test.labels)
    spoken = said(answers.explanations, test, tokens.tokenizer)
    cases = trained_cases(cfg, setup.untrained.at(rows), behavior_of(pairs, tokens.tokenizer), spoken)
    return evaluate(replace(cases, splits=[TEST] * len(rows)))


def scorer(
    cfg: RunConfig, setup: SharedSetup, run_name: str, tracker: Tracker, on_scores: OnScores | None
) -> Callable[[], None] | None:
    """What scores the run's answers that are new on the board: metrics interim.* of its tracker, and a call of
    `on_scores`. None where nothing is scored while it trains."""
    last = -1

    def look() -> None:
        nonlocal last
        for answers in ray.get(setup.status.answers.remote(run_name, last)):
            last = answers.step
            scores = interim_scores(cfg, setup, answers)
            tracker.log_metrics({"interim": tracked(scores)}, answers.step)
            if on_scores:
                on_scores(answers.step, scores)

    return look if cfg.eval.every else None
