"""Finished runs from their folders, as the controls need them: the table of cases, the config, the task's cues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from introspect_ray.cases.cue import deleted_span
from introspect_ray.config import RunConfig, flatten, override
from introspect_ray.errors import UserError
from introspect_ray.experiments.controls_cases import Subject
from introspect_ray.records import Case
from introspect_ray.rng import bits
from introspect_ray.runs.policy_cases import read_cases
from introspect_ray.scores.evaluated_cases import REFERENCE, EvaluatedCases
from introspect_ray.scores.evaluation_table import TRAINED, from_table, read_parquet
from introspect_ray.storage import Store, open_store

# What may differ between siblings: the seed, and where and how a run ran and was evaluated.
NOT_TRAINING = (
    *("seed", "output_dir", "cache_dir", "tracking", "rollout", "train", "eval", "alarms"),
    *("ray_address", "wait_for_nodes", "patience_s"),
)
TRAINING = ("train.weight_decay", "train.max_grad_norm", "train.dtype")  # these keys of `train` are no matter of speed


TRAINED_WITH = "trained with "


class _Found(NamedTuple):
    folder: Store
    cfg: RunConfig
    cases: EvaluatedCases


def load_subjects(folders: Sequence[str]) -> list[Subject]:
    """The runs in folders; a folder that holds several (a sweep's output_dir) gives all that are finished.

    Raises UserError for a folder without a finished run, or a table that cannot be read.
    """
    found = [_read(store) for folder in folders for store in _runs_in(folder)]
    names, trainings = _names([one.folder.join() for one in found]), _trainings(found)
    tasks: dict[str, dict[str, Case]] = {}
    subjects = []
    for one, name, training in zip(found, names, trainings, strict=True):
        key = one.cfg.task.model_dump_json()
        if key not in tasks:
            tasks[key] = _held_out(one.cfg)
        known = tasks[key]
        subjects.append(
            Subject(
                name=name,
                training=training,
                seed=one.cfg.seed,
                policy=one.folder.join("policy"),
                reference=_address(one.cfg.reference_policy) if REFERENCE in one.cases.pairs else None,
                calibrated=one.cfg.task.calibration != "none",
                held_out=_with_questions(one.cases, known),
                cues={case: deleted_span(its.messages, its.ablated_messages) or "" for case, its in known.items()},
            )
        )
    return subjects


def _runs_in(folder: str) -> list[Store]:
    store = open_store(folder)
    if store.exists(TRAINED) and store.exists("run.json"):
        return [store]
    ends = [name.removesuffix(TRAINED) for name in store.list() if name.endswith(f"/{TRAINED}")]
    runs = [open_store(store.join(end.rstrip("/"))) for end in sorted(ends) if store.exists(f"{end}run.json")]
    if not runs:
        raise UserError(
            f"{store.join()} holds no finished run with {TRAINED}: give output_dirs of training runs or of a sweep"
        )
    return runs


def _read(store: Store) -> _Found:
    try:
        cases = from_table(read_parquet(store.read_bytes(TRAINED)))
        return _Found(store, override(RunConfig(), store.read_json("run.json")), cases)
    except (ValueError, UserError) as error:
        raise UserError(f"{store.join()}: {error}") from None


def _names(folders: Sequence[str]) -> list[str]:
    """The ends of the folders' names by which they differ."""
    parts = [folder.rstrip("/").split("/") for folder in folders]
    depth = next((n for n in range(1, 20) if len({tuple(one[-n:]) for one in parts}) == len(parts)), 20)
    return ["/".join(one[-depth:]) for one in parts]


def _trainings(found: Sequence[_Found]) -> list[str]:
    """By run the config keys in which the given trainings differ. Example: "kl_weight=1.0"."""
    by_policy = {one.folder.join("policy"): one for one in found}

    def settings(one: _Found, depth: int = 0) -> dict[str, Any]:
        """Without the seed; a policy that another of the runs trained counts as that run's training."""
        kept = {key: value for key, value in flatten(one.cfg.model_dump(mode="json")).items() if not _ignored(key)}
        for key in ("policy", "reference_policy", "supervision.second_policy"):
            other = by_policy.get(_address(kept.get(key)) or "")
            if other is not None and other is not one and depth < 5:
                kept[key] = f"{TRAINED_WITH}{json.dumps(settings(other, depth + 1), sort_keys=True)}"
        return kept

    every = [settings(one) for one in found]
    keys = sorted({key for one in every for key in one})
    differing = [key for key in keys if len({str(one.get(key)) for one in every}) > 1]
    return [", ".join(f"{key}={_short(one.get(key))}" for key in differing or ["kl_weight"]) for one in every]


def _short(value: Any) -> str:
    """A value for people; equal only for equal values."""
    text = str(value)
    return f"another run's ({bits(text) >> 48:04x})" if text.startswith(TRAINED_WITH) else text


def _ignored(key: str) -> bool:
    return key not in TRAINING and any(key == one or key.startswith(f"{one}.") for one in NOT_TRAINING)


def _address(policy: str | None) -> str | None:
    """A policy's folder as its run's store names it; names of the hub and of the package stay as they are."""
    return open_store(policy).join() if policy and ("/" in policy) else policy


def _held_out(cfg: RunConfig) -> dict[str, Case]:
    """The held-out cases of a run's task by id; none where its files are not there any more."""
    try:
        return {case.case_id: case for case in read_cases(cfg)[1]}
    except (FileNotFoundError, UserError):
        return {}


def _with_questions(cases: EvaluatedCases, known: Mapping[str, Case]) -> EvaluatedCases:
    """Tables before format 2 do not say which cases share a question: the task does."""
    if list(cases.questions) != list(cases.case_ids) or not known:
        return cases
    return replace(
        cases,
        questions=[
            json.dumps(known[case].ablated_messages) if case in known else question
            for case, question in zip(cases.case_ids, cases.questions, strict=True)
        ],
    )
