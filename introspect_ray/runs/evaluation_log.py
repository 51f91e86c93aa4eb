"""evaluate --from FOLDER --inspect FILE.eval: a finished evaluation as a log of Inspect AI, with the prompts of q."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from introspect_ray.cases.tokenize import with_meta_question
from introspect_ray.config import RunConfig, override
from introspect_ray.errors import UserError, one_line
from introspect_ray.records import Message
from introspect_ray.runs.policy_cases import read_cases
from introspect_ray.scores.evaluated_cases import TEST, EvaluatedCases
from introspect_ray.scores.evaluation_table import EVALUATED, TRAINED, from_table, read_parquet
from introspect_ray.scores.inspect_log import write_inspect_log
from introspect_ray.storage import Store


def log_evaluation(store: Store, table: str, file: Path) -> None:
    """Write the cases of a table's test split, of which the metrics are, to `file`, and print what the log holds.

    table: a readable one of scores/evaluation_table.py. Raises UserError if Inspect AI is missing or the file cannot be
    written.
    """
    cases = from_table(read_parquet(store.read_bytes(table))).of(TEST)
    cfg, questions, shown = prompts(store, table, cases)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_inspect_log(
            cases,
            file,
            task=cfg.task.name if cfg else store.join(),
            policy=_policy(store, cfg, table),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            questions=questions,
        )
    except OSError as error:
        raise UserError(f"--inspect {file} cannot be written ({error.strerror or error}): name another file") from None
    print(f"log      {file}: {len(cases)} samples, the test split of {store.join(table)}\nprompts  {shown}")


def prompts(
    store: Store, table: str, cases: EvaluatedCases
) -> tuple[RunConfig | None, dict[str, Sequence[Message]], str]:
    """The config of an evaluation, the chat of q by case id, and a line that says which chats are known.

    A table has no prompts: they are read again from the task that the folder's config names. A case that the task no
    longer has, or has with other labels, is left out; without a config, or without the task's files, all are.
    """
    cfg: RunConfig | None = None
    try:
        cfg = override(RunConfig(), store.read_json("evaluation_run.json" if table == EVALUATED else "run.json"))
        held_out = read_cases(cfg)[1]
    except (FileNotFoundError, UserError) as error:
        return cfg, {}, f"not in the log, its samples show case ids: {one_line(error)}"
    labels = dict(zip(cases.case_ids, cases.labels, strict=True))
    found: dict[str, Sequence[Message]] = {
        case.case_id: with_meta_question(case) for case in held_out if labels.get(case.case_id) == case.labels
    }
    return cfg, found, _what_is_shown(cfg, len(cases), len(found), table)


def _what_is_shown(cfg: RunConfig, count: int, known: int, table: str) -> str:
    line = f"{known} of {count}, from task.name={cfg.task.name} as it is now"
    if known < count:
        line += "; the other samples show case ids, because the task no longer has these cases"
    if cfg.task.shots and table == EVALUATED:
        line += f"; the {cfg.task.shots} explained examples before each prompt (task.shots) are not shown"
    return line


def _policy(store: Store, cfg: RunConfig | None, table: str) -> str:
    """The name of the evaluated policy, for display."""
    if table == TRAINED:
        return store.join("policy")
    return (cfg.eval.policy if table == EVALUATED else None) or cfg.policy if cfg else "policy"
