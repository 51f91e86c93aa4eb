"""MMLU with and without a hint, as the paper's authors published it (`Transluce/input_ablation_*_mmlu_hint`).

Columns as of August 2026, taken from public code that reads them; the files were not opened here: hint_user_prompt,
original_user_prompt, system_prompt, and as metadata hint and what the published model answered (random_hint_prediction,
zeroshot_prediction). Each row is a case; the group is "hint". The labels are one letter per entry of `choices`, else
those of the options in the prompt. By default the hub copy made with Qwen3-8B is read; task.hub_id names the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Case, Message
from introspect_ray.tasks.choices import content_id, option_letters, user
from introspect_ray.tasks.public_set import PublicSet, open_set
from introspect_ray.tasks.rows import Drops, file_rows
from introspect_ray.tasks.source import CaseSource

COLUMNS = ("hint_user_prompt", "original_user_prompt")
METADATA = ("hint", "random_hint_prediction", "zeroshot_prediction")
META_QUESTION = "If the hint were removed, how would the assistant's answer change?"


def open_input_ablation(task: TaskConfig) -> tuple[CaseSource, CaseSource | None]:
    return open_set(task, PublicSet("input_ablation", _cases, "Transluce/input_ablation_qwen3_8b_mmlu_hint"))


def _cases(files: list[Path], task: TaskConfig, drops: Drops) -> Iterator[Case]:
    for file in files:
        for where, row in file_rows(file, COLUMNS, ("system_prompt", "choices", *METADATA)):
            x, ablated = (_chat(row, column, where) for column in COLUMNS)
            labels = _labels(row)
            if x == ablated:
                drops.add(where, "the two prompts are the same")
            elif not labels:
                drops.add(where, "neither choices nor lettered options")
            else:
                case_id = content_id("input-ablation", row[COLUMNS[0]], row[COLUMNS[1]])
                metadata = {key: row[key] for key in METADATA if row.get(key) is not None}
                yield Case(case_id, x, ablated, META_QUESTION, labels, group="hint", metadata=metadata)


def _chat(row: Mapping[str, Any], column: str, where: str) -> tuple[Message, ...]:
    if not isinstance(row[column], str) or not row[column].strip():
        raise UserError(f"{where}: {column} must be text, got {row[column]!r}; correct it")
    system = row.get("system_prompt") or ""
    return (*([{"role": "system", "content": str(system)}] if str(system).strip() else []), *user(row[column]))


def _labels(row: Mapping[str, Any]) -> tuple[str, ...]:
    choices = row.get("choices")
    if isinstance(choices, list) and len(choices) >= 2:
        return tuple(ascii_uppercase[: len(choices)])
    return option_letters(row["original_user_prompt"])
