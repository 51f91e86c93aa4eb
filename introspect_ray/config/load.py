"""Layers of a configuration as nested dicts: read, nested, merged. config.py says which layers there are."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from introspect_ray.config.sections import RunConfig, TaskConfig
from introspect_ray.errors import UserError

PRESETS = Path(__file__).parent / "presets"


def load_config(file: str | None, overrides: dict[str, Any], defaults: dict[str, Any] | None = None) -> RunConfig:
    """Merge preset, a job's `defaults`, file and overrides (both dotted, values parsed) into a validated RunConfig.

    Raises UserError naming the key, the value and the remedy.
    """
    given = merge(nest(defaults or {}), merge(read_yaml(Path(file)) if file else {}, nest(overrides)))
    name = (
        (given.get("task") or {}).get("name", TaskConfig().name) if isinstance(given.get("task"), dict | None) else None
    )
    preset = PRESETS / f"{name}.yaml"
    try:
        cfg = RunConfig.model_validate(merge(read_yaml(preset), given) if preset.is_file() else given)
    except ValidationError as error:
        raise UserError(_explain(error)) from None
    # Workers have other working folders than the driver.
    folders = {key: value for key in ("output_dir", "cache_dir") if (value := getattr(cfg, key))}
    policies = {
        "policy": cfg.policy,
        "supervision.second_policy": cfg.supervision.second_policy,
        "eval.policy": cfg.eval.policy,
    }
    against = [_absolute_policy(name) for name in cfg.eval.against]
    return override(
        cfg,
        {key: _absolute(value) for key, value in folders.items()}
        | {key: _absolute_policy(value) for key, value in policies.items()}
        | {"eval.against": against},
    )


def _absolute_policy(name: str | None) -> str | None:
    """A path on this machine as an absolute one; bundled policies, hub ids and URIs as they are."""
    if not name or name.partition(":")[0] == RunConfig.model_fields["policy"].default:
        return name
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _absolute(folder: str) -> str:
    """A local folder as an absolute path. Under `ray job submit` the working folder is a copy that Ray deletes
    again, so relative folders are taken from the home folder there."""
    local = folder.removeprefix("file://")
    if "://" in local:
        return folder
    base = Path.home() if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()
    return str(base / Path(local).expanduser())


def file_sets(file: str | None, key: str) -> bool:
    """Whether a config file sets the dotted key."""
    node: Any = read_yaml(Path(file)) if file else {}
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def override(cfg: RunConfig, flat: dict[str, Any]) -> RunConfig:
    """A copy of `cfg` with dotted keys replaced, validated again. Raises UserError."""
    try:
        return RunConfig.model_validate(merge(cfg.model_dump(), nest(flat)))
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def field_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted leaf names, e.g. "kl_weight", "supervision.agreement"."""
    names: list[str] = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += field_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, field_names(), n=1)
        remedy = f": did you mean {close[0]!r}?" if close else "; --dry-run prints them all"
        return f"unknown config key {key!r}{remedy}{more}"
    message = first["msg"].removeprefix("Value error, ")
    return f"config key {key!r}: {message}, got {first['input']!r}{more}" if key else f"config: {message}{more}"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError naming the file and what is wrong with it."""
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"config file {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"config file {path}: expected a mapping of keys, found {type(data).__name__}")
    return data


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested ones. Example: {"a.b": 1} -> {"a": {"b": 1}}. Raises UserError where both are given."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"override {key!r}: {parent!r} was given a value of its own; give one or the other")
        node[leaf] = value
    return out


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`low` with the leaves of `high` on top; neither is changed."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out
