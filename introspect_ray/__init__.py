"""introspect-ray: self-explanation training with online relabelling, distributed with Ray.

The Python API is what `__all__` names. Each name is imported when it is first used: `import introspect_ray` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from introspect_ray.config import RunConfig, load_config
    from introspect_ray.errors import AlarmError, Outage, UserError
    from introspect_ray.runs.api import evaluate, sweep, train

__version__ = "0.3.0"
__all__ = ["AlarmError", "Outage", "RunConfig", "UserError", "evaluate", "load_config", "sweep", "train"]

_HOMES = {
    "introspect_ray.config": ("RunConfig", "load_config"),
    "introspect_ray.errors": ("AlarmError", "Outage", "UserError"),
    "introspect_ray.runs.api": ("evaluate", "sweep", "train"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
