"""Label sets that a cache has: used if they are whole."""

from __future__ import annotations

from introspect_ray.config import RunConfig
from introspect_ray.judges import JudgeReport, check_unjudged
from introspect_ray.labels.label_sets import load_pairs
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.labels.reports import load_report
from introspect_ray.runs.results import warned


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
