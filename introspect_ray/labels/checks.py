"""What can be wrong with labels, found on whole columns of a label table. Shape: n labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from introspect_ray.config import RunConfig
from introspect_ray.labels.reading import Reading
from introspect_ray.labels.rules import draw, mixing_draw
from introspect_ray.labels.store import agrees
from introspect_ray.records import Label
from introspect_ray.schedule import label_version


class Problem(NamedTuple):
    """One way in which labels can be wrong, and the labels that are."""

    name: str  # a key of audit.CHECKS
    rows: np.ndarray  # bool [n]
    describe: Callable[[Label, int], str]  # what is wrong with one of them, from the label and its row


def problems(table: pa.Table, cfg: RunConfig, reading: Reading) -> Iterator[Problem]:
    """Check the labels of `table` against `cfg`, the config of their run, and how it read behaviours.

    table: of LABEL_SCHEMA, without nulls in the columns that are not nullable.
    """
    rule, step = cfg.supervision, table["step"].to_numpy()
    expected = _draws(table, cfg)
    second = expected < rule.mixing_ratio if rule.rule == "mixed" else np.zeros(len(table), bool)
    yield _foreign(table, "rule", rule.rule)
    yield _foreign(table, "seed", cfg.seed)
    first = cfg.policy if rule.rule == "online" else cfg.reference_policy or cfg.policy
    yield _foreign(table, "source_model", first, ~second)
    yield _foreign(table, "source_model", rule.second_policy or "", second)
    yield from _reading_problems(table, reading)
    cued, ablated = (table[name].to_numpy() for name in ("cued_version", "ablated_version"))
    yield Problem("split_pair", cued != ablated, lambda _, i: f"versions {cued[i]} and {ablated[i]}")
    version = _versions(step, cfg)
    yield Problem(
        "wrong_version", cued != version, lambda _, i: f"version {cued[i]}, lag {cfg.lag} asks for {version[i]}"
    )
    drawn = table["draw"].to_numpy()
    yield Problem(
        "wrong_draw",
        (drawn != expected) & ~(np.isnan(drawn) & np.isnan(expected)),
        lambda _, i: f"draw {drawn[i]}, recomputed {expected[i]}",
    )
    for rows, describe in _flip_problems(table, cfg, expected):
        yield Problem("wrong_flip", rows, describe)


def _foreign(table: pa.Table, name: str, wanted: str | int, among: np.ndarray | bool = True) -> Problem:
    rows = ~pc.equal(table[name], wanted).to_numpy() & among
    return Problem("foreign", rows, lambda _, i: f"{name} is {table[name][i].as_py()!r}, the run's {wanted!r}")


def _reading_problems(table: pa.Table, reading: Reading) -> Iterator[Problem]:
    """Labels read by another judge or calibration than the run's. A judged label, of free text, is not calibrated."""
    judged = ~pc.equal(table["judge"], "").to_numpy()
    calibration = reading.calibration.identity if reading.calibration else ""
    yield _foreign(table, "judge", reading.judge, judged)
    yield _foreign(table, "calibration", "", judged)
    yield _foreign(table, "calibration", calibration, ~judged)


def _draws(table: pa.Table, cfg: RunConfig) -> np.ndarray:
    """The draws that the labels must record, float64 [n]; NaN if the rule draws nothing."""
    steps, ids = table["step"].to_pylist(), table["case_id"].to_pylist()
    if cfg.supervision.rule == "online":
        found = (draw(cfg.seed, step, case_id, "agreement") for step, case_id in zip(steps, ids, strict=True))
    elif cfg.supervision.rule == "mixed":
        found = (mixing_draw(cfg.seed, case_id) for case_id in ids)
    else:
        return np.full(len(table), math.nan)
    return np.fromiter(found, np.float64, len(table))


def _versions(step: np.ndarray, cfg: RunConfig) -> np.ndarray:
    """The weight versions that the labels must have, int64 [n]: by the lag for online labels, else 0 (M0)."""
    if cfg.supervision.rule != "online":
        return np.zeros(len(step), np.int64)
    steps, where = np.unique(step, return_inverse=True)
    versions = [label_version(one, cfg.lag, cfg.rollout.sync_every) for one in steps.tolist()]
    return np.array(versions, np.int64)[where]


def _flip_problems(
    table: pa.Table, cfg: RunConfig, expected: np.ndarray
) -> Iterator[tuple[np.ndarray, Callable[[Label, int], str]]]:
    """Labels that are flipped, or not, against their draw. expected: the draws that they must record [n]."""
    rule, flipped = cfg.supervision, table["flipped"].to_numpy()
    sampled = table["current_content"].is_valid().to_numpy()
    if rule.rule != "online":
        yield flipped | sampled, lambda label, i: f"flipped={flipped[i]}, current={label.current}: nothing to flip"
        return
    yield ~sampled, lambda label, i: "no E of the pair it was made from"
    yield (
        flipped != (expected >= rule.agreement),
        lambda label, i: f"flipped={flipped[i]} at draw {expected[i]:.4f}, agreement {rule.agreement:g}",
    )
    yield (
        sampled & (flipped == agrees(table).to_numpy()),
        lambda label, i: f"flipped={flipped[i]}, label {tuple(label.explanation)}, E of the pair {label.current}",
    )
    if rule.wrong_label == "content":
        kept = pc.equal(table["content"], table["current_content"]).fill_null(False).to_numpy()
        yield flipped & kept, lambda label, i: f"the wrong label keeps the content {label.explanation.content!r}"
