"""Bulk labelling as a Ray Data pipeline: parts -> engines (a pool of actors that grows and shrinks) -> files.

Only parts that are under way are in memory. The cases lie once on every node in Ray's object store, which spills to
disk; engines answer as rollout actors do (actors/rollout.py), and what they made of a part goes to a task that writes
it, so that no engine waits for storage.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from operator import add
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, UserCodeException

from introspect_ray.actors.rollout import EngineSpec, Request, RolloutResult, RolloutWorker, Serving, Task
from introspect_ray.cases.explanations import parse
from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import decode_turn
from introspect_ray.config import RolloutConfig, RunConfig
from introspect_ray.errors import AlarmError, RepeatedFailure, UserError
from introspect_ray.judges import JudgeReport
from introspect_ray.records import BehaviorPair, TokenizedCase
from introspect_ray.runs.bulk_parts import Answered, Part, part_bytes
from introspect_ray.storage import open_store

_WRITER_CPUS = 0.25  # a writing task waits for storage most of the time
_REFUSED = {error.__name__: error for error in (UserError, AlarmError)}
Row = dict[str, Any]


@dataclass(frozen=True)
class Labelling:
    """All that an engine needs to make parts. Picklable.

    provenance: of the label set. max_explanation: most tokens of an explanation; None: none is asked for.
    """

    rollout: RolloutConfig
    spec: EngineSpec
    tokenizer: Any
    provenance: Mapping[str, Any]
    max_explanation: int | None


class Labeller:
    """One engine in an actor of Ray Data's pool: parts in, their Parquet files as bytes out."""

    def __init__(self, labelling: Labelling, tables: Sequence[Any]) -> None:
        """tables: refs of the CaseTables of the training and held-out cases, in a list, which Ray passes unresolved."""
        self._labelling, self._refs = labelling, list(tables)
        self._worker = RolloutWorker(labelling.rollout, labelling.spec)
        self._tables: list[CaseTable] = ray.get(self._refs)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
        """batch: columns "first" and "cases" of Part. An error that a user can mend is a row, so that it comes to the
        driver as it is and not inside of others."""
        rows = [self._row(Part(int(first), int(cases))) for first, cases in zip(batch["first"], batch["cases"])]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _row(self, part: Part) -> Row:
        row: Row = {"name": part.name, "cases": part.cases, "data": b"", "judged": "null", "kind": "", "refused": ""}
        try:
            answered, sides = self._answered(part)
        except (UserError, AlarmError) as error:
            kind = UserError if isinstance(error, UserError) else AlarmError
            return {**row, "kind": kind.__name__, "refused": str(error)}
        judged = json.dumps(answered.judged.summary() if answered.judged else None)
        return {**row, "data": part_bytes(answered, sides, self._labelling.provenance), "judged": judged}

    def _answered(self, part: Part) -> tuple[Answered, list[str]]:
        rows = [(side, row) for side, row in _rows(self._tables, part)]
        ids = [self._tables[side].case_id(row) for side, row in rows]
        cases = [self._tables[side][row] for side, row in rows]
        size, longest = self._labelling.rollout.bulk_group, self._labelling.max_explanation
        groups = [ids[start : start + size] for start in range(0, len(ids), size)]
        labelled = [self._ask("label", group) for group in groups]
        pairs: list[BehaviorPair] = list(chain.from_iterable(result.pairs for result in labelled))
        reports = [result.judged for result in labelled if result.judged]
        said = None
        if longest is not None:
            explained = [self._ask("explain", group, longest) for group in groups]
            tokens = chain.from_iterable(result.answers for result in explained)
            said = [self._said(case, ids) for case, ids in zip(cases, tokens, strict=True)]
        texts = [self._texts(case, pair) for case, pair in zip(cases, pairs, strict=True)]
        judged = reduce(add, reports) if reports else None
        return Answered(pairs, texts, said, judged), [("train", "test")[side] for side, _ in rows]

    def _ask(self, task: Task, group: Sequence[str], max_tokens: int = 1) -> RolloutResult:
        return self._worker.answer(Request(task, group, Serving(), 0, max_tokens), self._refs)

    def _said(self, case: TokenizedCase, tokens: Sequence[int]) -> tuple[str, Any]:
        text = decode_turn(tokens, self._labelling.tokenizer)
        return text, parse(text, case.labels, case.templates)

    def _texts(self, case: TokenizedCase, pair: BehaviorPair) -> tuple[str, str] | None:
        if not case.max_response:
            return None
        tokenizer = self._labelling.tokenizer
        return decode_turn(pair.cued_response, tokenizer), decode_turn(pair.ablated_response, tokenizer)


def _rows(tables: Sequence[CaseTable], part: Part) -> Iterator[tuple[int, int]]:
    """(number of the table, row in it) of each row of a part."""
    for row in range(part.first, part.first + part.cases):
        first = len(tables[0])
        yield (0, row) if row < first else (1, row - first)


def write_part(batch: Mapping[str, np.ndarray], folder: str) -> dict[str, list[Any]]:
    """Write the parts of a batch to the store of `folder`, each atomically. What was refused passes through."""
    store = open_store(folder)
    for name, data, refused in zip(batch["name"], batch["data"], batch["refused"]):
        if not refused:
            store.write_bytes(str(name), bytes(data))
    return {name: list(column) for name, column in batch.items() if name != "data"}


def label_parts(
    cfg: RunConfig, labelling: Labelling, tables: Sequence[Any], parts: Sequence[Part]
) -> Iterator[tuple[int, JudgeReport | None]]:
    """Label and write `parts`; yields (cases, what the judges made of them) of each part once it is written.

    tables: refs of the CaseTables. The engines end with the iteration. Raises UserError and AlarmError as an engine
    raised them, and RepeatedFailure for a part on which engines died.
    """
    import ray.data

    rollout, most = cfg.rollout, min(cfg.rollout.num_actors, len(parts))
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        max_size=most,
        initial_size=1 if cfg.wait_for_nodes else most,  # there is room for all, or an autoscaler makes it
        max_concurrent_calls_per_actor=1,
        enable_true_multi_threading=True,  # with one call at a time: in the actor's main thread, as rollout actors run
    )
    with _quiet_context():
        rows = ray.data.from_items([part._asdict() for part in parts], override_num_blocks=len(parts))
        rows = rows.map_batches(
            Labeller,
            fn_constructor_args=[labelling, list(tables)],
            batch_size=1,
            compute=pool,
            num_cpus=rollout.num_cpus,
            num_gpus=rollout.num_gpus,
            max_task_retries=max(cfg.train.max_failures - 1, 0),  # Ray Data's own default has no bound
        )
        rows = rows.map_batches(write_part, batch_size=1, num_cpus=_WRITER_CPUS, fn_kwargs={"folder": cfg.output_dir})
        try:
            for row in rows.iter_rows():
                if row["refused"]:
                    raise _REFUSED[row["kind"]](row["refused"])
                judged = json.loads(row["judged"])
                yield row["cases"], JudgeReport.from_summary(judged) if judged else None
        except (RayError, UserCodeException) as error:
            raise RepeatedFailure(
                f"labelling failed {max(cfg.train.max_failures, 1)} time(s) on one part, the last time with: "
                f"{_reason(error)}; if that is memory, lower rollout.group_size or rollout.gpu_memory_utilization; go "
                "on with --resume"
            ) from error


def _reason(error: BaseException) -> str:
    """The last line of what went wrong at the root of a failure in a pipeline."""
    while isinstance(getattr(error, "cause", None), BaseException) or error.__cause__:
        error = getattr(error, "cause", None) or error.__cause__  # type: ignore[assignment]
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


@contextmanager
def _quiet_context() -> Iterator[None]:
    """Ray Data without its own progress bars, and with failed engines asked again; the settings before are restored."""
    import ray.data
    from ray.util import log_once

    logging.getLogger("ray.data").setLevel(logging.WARNING)  # after the import, which sets it to INFO
    log_once("ray_data_progress_manager_disabled")  # as if it had been said: that progress bars are off
    context = ray.data.DataContext.get_current()
    ours = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "actor_task_retry_on_errors": True,  # all that a user can mend comes as a row
    }
    before = {name: getattr(context, name) for name in ours}
    try:
        for name, value in ours.items():
            setattr(context, name, value)
        with warnings.catch_warnings():
            # Ray 2.60 announces that max_task_retries is to go in 2.64, and has nothing in its place.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
