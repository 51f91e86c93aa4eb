"""The cases of the bundled model organism."""

from __future__ import annotations

from introspect_ray.config import TaskConfig
from introspect_ray.organism import FOLDER
from introspect_ray.tasks.jsonl import case_file
from introspect_ray.tasks.source import CaseSource


def open_organism(task: TaskConfig) -> tuple[CaseSource, CaseSource]:
    return case_file(FOLDER / "train.jsonl"), case_file(FOLDER / "test.jsonl")
