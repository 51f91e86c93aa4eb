"""Tasks: raw rows -> counterfactual cases, split into training and held-out ones.

A task is a function (`Task`) that says where its rows stand and how a row becomes a case. To add one, add a file
here and a line in registry.py, or install a package with an entry point in the group "introspect_ray.tasks".
"""

from introspect_ray.tasks.files import existing_file, text_lines
from introspect_ray.tasks.registry import open_task
from introspect_ray.tasks.source import CaseSource, Task
from introspect_ray.tasks.streams import CaseStream, load_cases

__all__ = ["CaseSource", "CaseStream", "Task", "existing_file", "load_cases", "open_task", "text_lines"]
