"""The cases of the bundled model organism."""

from __future__ import annotations

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.organism import FOLDER
from introspect_ray.tasks.jsonl import case_file
from introspect_ray.tasks.source import CaseSource


def open_organism(task: TaskConfig) -> tuple[CaseSource, CaseSource]:
    """The bundled files. Raises UserError where the config names files, which this task would not read."""
    for key, path in (("task.path", task.path), ("task.test_path", task.test_path)):
        if path:
            raise UserError(
                f"{key}={path} does not go with task.name=organism, whose cases are bundled: set task.name=jsonl to "
                "read your own, or leave the file out"
            )
    return case_file(FOLDER / "train.jsonl"), case_file(FOLDER / "test.jsonl")
