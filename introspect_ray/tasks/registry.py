"""Which tasks there are: the built-in ones, and those that installed packages register.

A package registers a task in its pyproject.toml; NAME is then a value of `task.name`:

    [project.entry-points."introspect_ray.tasks"]
    NAME = "my_package.my_module:open_my_task"
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError, one_line
from introspect_ray.tasks.aita import open_aita
from introspect_ray.tasks.bbq import open_bbq
from introspect_ray.tasks.cot_faithfulness import open_cot_faithfulness
from introspect_ray.tasks.cot_monitorability import open_cot_monitorability
from introspect_ray.tasks.cot_transparency import open_cot_transparency
from introspect_ray.tasks.hint_mmlu import open_hint_mmlu
from introspect_ray.tasks.input_ablation import open_input_ablation
from introspect_ray.tasks.inspect_samples import open_inspect
from introspect_ray.tasks.jabberwocky import open_jabberwocky
from introspect_ray.tasks.jsonl import open_jsonl
from introspect_ray.tasks.organism import open_organism
from introspect_ray.tasks.refusal import open_refusal
from introspect_ray.tasks.scale_monitorability import open_scale_monitorability
from introspect_ray.tasks.source import CaseSource, Task
from introspect_ray.tasks.sycophancy_eval import open_sycophancy_eval

GROUP = "introspect_ray.tasks"
BUILT_IN: dict[str, Task] = {
    "organism": open_organism,
    "hint_mmlu": open_hint_mmlu,
    "aita": open_aita,
    "refusal": open_refusal,
    "jabberwocky": open_jabberwocky,
    "jsonl": open_jsonl,
    "bbq": open_bbq,
    "cot_faithfulness": open_cot_faithfulness,
    "cot_monitorability": open_cot_monitorability,
    "cot_transparency": open_cot_transparency,
    "input_ablation": open_input_ablation,
    "inspect": open_inspect,
    "scale_monitorability": open_scale_monitorability,
    "sycophancy_eval": open_sycophancy_eval,
}


def open_task(task: TaskConfig) -> tuple[CaseSource, CaseSource | None]:
    """The sources of a task's training and held-out cases (see `Task`); no row is read yet.

    Raises UserError if there is no such task, if its package cannot be imported, or if the task refuses its config.
    """
    return find_task(task.name)(task)


def find_task(name: str) -> Task:
    """The built-in task of this name, else the registered one. Raises UserError as `open_task` does."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    registered = entry_points(group=GROUP)
    found = list(registered.select(name=name))
    if not found:
        known = [*BUILT_IN, *sorted(registered.names - set(BUILT_IN))]
        close = get_close_matches(name, known, n=1)
        remedy = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"unknown task {name!r} (task.name): {remedy}the tasks are {', '.join(known)}")
    if len(found) > 1:
        packages = ", ".join(sorted(map(_package, found)))
        raise UserError(f"task.name={name} is registered by several packages ({packages}): uninstall all but one")
    return _load(found[0])


def _load(entry: EntryPoint) -> Task:
    origin = f"task.name={entry.name}: {entry.value} of the package {_package(entry)}"
    try:
        task: Task = entry.load()
    except Exception as error:  # whatever a module of another package raises while it is imported
        raise UserError(
            f"{origin} cannot be imported ({type(error).__name__}: {one_line(error)}): repair or uninstall the package"
        ) from error
    if not callable(task):
        raise UserError(f"{origin} is not a function but {type(task).__name__}: repair or uninstall the package")
    return task


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"
