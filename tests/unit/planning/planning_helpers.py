"""What the tests of a plan share: Qwen3-8B on the assumed case."""

from __future__ import annotations

from introspect_ray.cli import parse
from introspect_ray.commands import plan_flags as flags
from introspect_ray.config import RunConfig, TaskConfig, load_config
from introspect_ray.planning.assumptions import Assumptions
from introspect_ray.planning.job import DEFAULTS, make_plan
from introspect_ray.planning.model_shape import read_shape
from introspect_ray.planning.report import Plan
from introspect_ray.planning.work import assumed_sizes
from tune_spaces.kl_weight import SPACE

A = Assumptions()
SHAPE, CASE = read_shape("Qwen/Qwen3-8B"), assumed_sizes(A, TaskConfig())
P, HEAD = 8_190_735_360, 151_936 * 4096
MATRICES = 4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 12288  # weights of a layer's seven linear maps
LAYER, ROOT = MATRICES + 2 * 4096 + 2 * 128, 2 * HEAD + 4096
INSIDE = 2 * 6 * 4096 + 6 * (4096 + 1024) + 4 * 4096 + 8 * 4096 + 8 * 12288  # bytes per token that a layer keeps


def config(**changes: object) -> RunConfig:
    return load_config(None, {**DEFAULTS, **{key.replace("__", "."): value for key, value in changes.items()}})


def plan(*args: str) -> Plan:
    return make_plan(parse("plan", [*args], flags), SPACE)
