"""The Python API: the commands train, sweep and evaluate as functions (`from introspect_ray import train`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from introspect_ray.config import RunConfig, override, resolve_paths
from introspect_ray.runs import jobs
from introspect_ray.runs.complete import finished
from introspect_ray.runs.search_space import check_values, space_of


def train(
    config: RunConfig,
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a policy, evaluate it on the held-out cases, and return the content of summary.json.

    config: see load_config. overrides: values by dotted key that replace those of `config`. resume: go on from the
    last checkpoint in output_dir; a finished run returns its summary. overwrite: replace an earlier run there.

    Joins the cluster of ray_address or RAY_ADDRESS, or starts a local Ray, and disconnects at the end. If Ray is
    initialised already, that connection is used and kept. Raises UserError for bad input, before anything is written,
    and AlarmError if a run must stop.

    >>> from introspect_ray import load_config, train
    >>> small = {"steps": 2, "batch_size": 16, "task.train_cases": 64, "task.test_cases": 32}
    >>> config = load_config(overrides={"output_dir": "runs/first", "rollout.engine": "transformers", **small})
    >>> summary = train(config, {"kl_weight": 0.1})
    >>> summary["steps"], summary["kl_weight"]
    (2, 0.1)
    """
    cfg = _replaced(config, overrides)
    checked = jobs.check(cfg, [cfg], resume=resume, overwrite=overwrite)
    if resume and (summary := finished(cfg)) is not None:
        return summary
    return jobs.run_training(cfg, checked)


def sweep(
    config: RunConfig,
    key: str,
    values: Sequence[Any],
    seeds: Sequence[int] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Train one run per value of the config key `key` and per seed, on one set of engines.

    Returns the rows of sweep.json, sorted by value and seed: each is a summary with the swept value and the seed.
    seeds: None is config.seed alone. resume: run only the trials that have no summary. A key of the paper's sweeps
    also sets what these fix (supervision.agreement sets supervision.rule=online).

    Ray and errors are as in `train`. AlarmError is raised after all trials, when the results of the others are
    written.

    >>> from introspect_ray import load_config, sweep
    >>> small = {"steps": 2, "batch_size": 16, "task.train_cases": 64, "task.test_cases": 32}
    >>> config = load_config(overrides={"output_dir": "runs/two", "rollout.engine": "transformers", **small})
    >>> [(row["kl_weight"], row["seed"]) for row in sweep(config, "kl_weight", [1, 0])]
    [(0.0, 0), (1.0, 0)]
    """
    space = space_of(key)
    cfg = _replaced(config, space.fixed)
    given = jobs.Sweep((space,), [list(values)], [cfg.seed] if seeds is None else list(seeds), cfg)
    check_values(space, given.values[0], given.seeds)
    trials = [trial.cfg for trial in given.trials]
    return jobs.run_trials(given, jobs.check(cfg, trials, resume=resume, overwrite=overwrite))


def evaluate(
    config: RunConfig,
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score eval.policy (None: M0 itself) against M0 on the held-out cases; returns the content of evaluation.json.

    resume: output_dir may be that of the run that trained the policy. The rest is as in `train`.

    >>> from introspect_ray import evaluate, load_config
    >>> config = load_config(overrides={"output_dir": "runs/scores", "rollout.engine": "transformers"})
    >>> scores = evaluate(config, {"task.test_cases": 32, "eval.policy": "organism:second"})
    >>> scores["base"], scores["policy"], scores["cases"], scores["dev"]["cases"]
    ('organism', 'organism:second', 26, 6)
    """
    cfg = _replaced(config, overrides)
    with jobs.local_trained_policy(cfg, overwrite=overwrite) as local:
        return jobs.run_evaluation(cfg, local, jobs.check_evaluation(local, resume=resume, overwrite=overwrite))


def _replaced(config: RunConfig, overrides: Mapping[str, Any] | None) -> RunConfig:
    return resolve_paths(override(config, overrides or {}))
