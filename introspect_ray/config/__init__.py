"""The configuration of a run."""

from introspect_ray.config.load import field_names, file_sets, load_config, override, read_yaml
from introspect_ray.config.sections import (
    AlarmConfig,
    EvalConfig,
    RolloutConfig,
    RunConfig,
    SupervisionConfig,
    TaskConfig,
    TrackingConfig,
    TrainConfig,
)

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
    "load_config",
    "override",
    "read_yaml",
]
