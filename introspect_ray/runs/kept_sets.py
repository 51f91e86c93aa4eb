"""Label sets that a cache has: used if they are whole.

What M0 answers to the training cases may have been read off the pass that makes its reference (one_pass.py), so such a
set has a name of its own, made of the name that the engine's set would have.
"""

from __future__ import annotations

import hashlib
import json

from introspect_ray.config import RunConfig
from introspect_ray.judges import JudgeReport, check_unjudged
from introspect_ray.labels.label_sets import engine_version, has_pairs, load_pairs
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.labels.reports import load_report
from introspect_ray.runs.results import warned


def pass_set(cfg: RunConfig, key: str) -> str:
    """The name of the label set whose training cases one pass labels. key: of the one that the engine would make."""
    names = ("dtype", "attention", "use_gpu", "token_budget")
    how = {name: getattr(cfg.train, name) for name in names} | {"torch": engine_version("torch"), "engine's": key}
    return hashlib.blake2b(json.dumps(how, sort_keys=True).encode(), digest_size=16).hexdigest()


def stored_set(cfg: RunConfig, cache_uri: str, key: str) -> str | None:
    """The name by which the cache has a label set: that of one pass, else the engine's; None if it has neither."""
    return next((name for name in (pass_set(cfg, key), key) if has_pairs(cache_uri, name)), None)


def labels_there(cfg: RunConfig, cache_uri: str, key: str) -> bool:
    """Whether no pass has to label: its own set is there and whole, or the engine's is there. One that is damaged is
    made again by whoever made it."""
    name = pass_set(cfg, key)
    return load_pairs(cache_uri, name) is not None if has_pairs(cache_uri, name) else has_pairs(cache_uri, key)


def kept_labels(cfg: RunConfig, cache_uri: str, key: str) -> tuple[PairTable, JudgeReport | None] | None:
    """The set of one pass, else the engine's, as `kept_set` gives it."""
    return kept_set(cfg, cache_uri, pass_set(cfg, key)) or kept_set(cfg, cache_uri, key)


def kept_set(cfg: RunConfig, cache_uri: str, key: str) -> tuple[PairTable, JudgeReport | None] | None:
    """A label set of the cache, raw, and what the judges made of it; None if it is not there, or damaged, which a
    warning says. Raises AlarmError as `_kept_report`."""
    pairs = load_pairs(cache_uri, key)
    if pairs is None:
        return None
    try:
        report = _kept_report(cfg, cache_uri, key)
        if report is None and pairs.free_text:
            raise ValueError(f"the judges' report on label set {key} is missing")
    except ValueError as error:
        warned([f"{error}: the set is made again"])
        return None
    return pairs, report


def _kept_report(cfg: RunConfig, cache_uri: str, key: str) -> JudgeReport | None:
    """What the judges made of a cached label set. Raises AlarmError beyond this run's bound, as if it were made now,
    and ValueError for a damaged report."""
    report = load_report(cache_uri, key)
    if report:
        check_unjudged(report, cfg.judge.max_unjudged)
    return report
