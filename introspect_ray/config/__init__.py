"""The configuration of a run: its keys (sections), where they come from (load), which go together (compatibility)."""

from introspect_ray.config.evaluation import EvalConfig
from introspect_ray.config.load import (
    field_names,
    file_sets,
    flatten,
    is_text,
    load_config,
    override,
    read_yaml,
    resolve_paths,
)
from introspect_ray.config.sections import (
    AlarmConfig,
    RolloutConfig,
    RunConfig,
    SupervisionConfig,
    TrackingConfig,
    TrainConfig,
)
from introspect_ray.config.task import TaskConfig

__all__ = [
    "AlarmConfig",
    "EvalConfig",
    "RolloutConfig",
    "RunConfig",
    "SupervisionConfig",
    "TaskConfig",
    "TrackingConfig",
    "TrainConfig",
    "field_names",
    "file_sets",
    "flatten",
    "is_text",
    "load_config",
    "override",
    "read_yaml",
    "resolve_paths",
]
