"""Tasks: raw rows -> counterfactual cases, split into training and held-out ones."""

from introspect_ray.tasks.streams import ORGANISM, CaseStream, load_cases

__all__ = ["ORGANISM", "CaseStream", "load_cases"]
