"""Whether the record of a run is whole: steps x batch labels, a row of metrics per step, every held-out case.

when                         what is missing is
-----------------------------------------------------------------------------------------------------------
training starts              made again from an older checkpoint, if labels before the newest one are gone
training has ended           rows: written from those that rank 0 has (actors/trainer.py keeps them in checkpoints)
                             fixed and mixed labels: made again, as they follow from the config and M0 alone
the results are written      named, and the run ends with an error: it is not finished
--resume of a finished run   as above, if there is a checkpoint to make it from
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from introspect_ray.config import RunConfig
from introspect_ray.errors import Incomplete
from introspect_ray.labels.rules import Sources, make_labels
from introspect_ray.labels.store import LabelWriter, read_tables
from introspect_ray.runs.results import missing_rows, step_rows, warned
from introspect_ray.schedule import plan_ids
from introspect_ray.scores.evaluation_table import TRAINED, read_parquet
from introspect_ray.storage import Store, open_store
from introspect_ray.storage.checkpoints import FOLDER, check, list_names, step_of
from introspect_ray.storage.tracker import Tracker, finite

SUMMARY = "summary.json"


def label_counts(store: Store, steps: int) -> np.ndarray:
    """How many labels the run's table has of each step, int64 [steps]. Raises UserError if a part is damaged."""
    counts = np.zeros(steps, np.int64)
    for table in read_tables(store.join("labels"), ["step"]):
        of = table["step"].drop_null().to_numpy()
        np.add.at(counts, of[(of >= 0) & (of < steps)], 1)
    return counts


def go_back(store: Store, cfg: RunConfig, identity: Mapping[str, Any], warn: Callable[[Sequence[str]], object]) -> None:
    """Before training: if the label table lacks labels that the newest checkpoint takes for made, delete the
    checkpoints after those labels, so that training makes them again, with the same bits.

    That is only done if an older checkpoint is whole: to start at step 0 is for the user to say. `warn` gets a line.
    """
    names = list_names(store)
    counts = label_counts(store, step_of(names[0])) if names else np.zeros(0, np.int64)
    wrong = np.flatnonzero(counts != cfg.batch_size)
    if cfg.supervision.rule != "online":  # what is gone is made again when training has ended
        wrong = wrong[counts[wrong] > 0]
    if not len(wrong):
        return
    lacks = _labels_line(counts, cfg)
    older = (name for name in names if step_of(name) <= wrong[0])
    whole = next((name for name in older if check(store, name, identity) is None), None)
    if whole is None:
        warn([f"{lacks}, and there is no checkpoint before them to make them again from: this run cannot be complete"])
        return
    warn([f"{lacks}: going back to the checkpoint of step {step_of(whole)}, from which they are made again"])
    for name in names[: names.index(whole)]:
        store.delete_prefix(f"{FOLDER}/{name}")


def complete_rows(store: Store, tracker: Tracker, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The run's step metrics, in order; those that metrics.jsonl lacks are written there.

    rows: of all steps, as rank 0 has them.
    """
    tracker.flush()
    found = {row["step"]: row for row in step_rows(store)}
    lost = [finite(row) for row in rows if row["step"] not in found]
    if lost:
        warned([f"metrics.jsonl lacked {len(lost)} steps, the first is {lost[0]['step']}: they are written again"])
        for row in lost:
            tracker.log_step(row)
        tracker.flush()
        found |= {row["step"]: row for row in lost}
    return [found[step] for step in sorted(found)]


def complete_labels(store: Store, cfg: RunConfig, sources: Sources) -> None:
    """Make fixed and mixed labels of steps that have none again."""
    if cfg.supervision.rule == "online":
        return
    gone = np.flatnonzero(label_counts(store, cfg.steps) == 0).tolist()
    if not gone:
        return
    warned([f"the label table lacks {len(gone)} steps, the first is {gone[0]}: their labels are made again"])
    ids, writer = list(sources.labels), LabelWriter(store.join("labels"))
    for step in gone:
        writer.append(make_labels(cfg, sources, step, plan_ids(cfg, ids, step), []))
    writer.close()


def lacks(store: Store, cfg: RunConfig, held_out: int) -> list[str]:
    """What the record of a finished run lacks, a line each. held_out: its held-out cases, of both splits."""
    found = []
    counts = label_counts(store, cfg.steps)
    if (counts != cfg.batch_size).any():
        found.append(_labels_line(counts, cfg))
    found += missing_rows(step_rows(store), cfg.steps)
    try:
        cases = len(read_parquet(store.read_bytes(TRAINED))) if store.exists(TRAINED) else 0
        if cases != held_out:
            found.append(f"{TRAINED} has {cases} of {held_out} held-out cases")
    except ValueError as error:
        found.append(f"{TRAINED}: {error}")
    return found


def _labels_line(counts: np.ndarray, cfg: RunConfig) -> str:
    """counts: labels per step [steps]."""
    wrong = np.flatnonzero(counts != cfg.batch_size)
    return (
        f"labels/ has {int(counts.sum())} of {len(counts) * cfg.batch_size} labels: {len(wrong)} steps from "
        f"{wrong[0]} to {wrong[-1]} have not the {cfg.batch_size} of their batch"
    )


def require_complete(store: Store, cfg: RunConfig, held_out: int) -> None:
    """Raises Incomplete, for a run whose results are written, if its record lacks something."""
    if gone := lacks(store, cfg, held_out):
        raise _incomplete(store, gone)


def _incomplete(store: Store, gone: Sequence[str]) -> Incomplete:
    return Incomplete(
        f"{store.join()} is not finished: {'; '.join(gone)}. Its scores in {SUMMARY} stand, its record has a gap; "
        "--resume makes it again where a checkpoint from before the gap is left, --overwrite makes the whole run again"
    )


def finished(cfg: RunConfig) -> dict[str, Any] | None:
    """The summary of a finished run. None: there is none, or its record has a gap that going on from a checkpoint
    closes (a warning says so).

    Raises Incomplete if a gap cannot be closed, UserError if a part of the label table is damaged.
    """
    store = open_store(cfg.output_dir)
    if not store.exists(SUMMARY):
        return None
    summary: dict[str, Any] = store.read_json(SUMMARY)
    held_out = summary.get("cases", {}).get("test", 0) + (summary.get("dev") or {}).get("cases", 0)
    gone = lacks(store, cfg, held_out)
    if not gone:
        return summary
    names, counts = list_names(store), label_counts(store, cfg.steps)
    first = next(iter(np.flatnonzero(counts != cfg.batch_size).tolist()), cfg.steps)
    if not names or (cfg.supervision.rule == "online" and step_of(names[-1]) > first):
        raise _incomplete(store, gone)
    warned([f"{line}: made again from a checkpoint" for line in gone])
    return None
