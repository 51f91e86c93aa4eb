"""From files, presets and overrides to one validated RunConfig.

Later ones win: field defaults < the task's preset (presets/<task.name>.yaml) < the job's defaults < --config FILE <
key=value overrides. A section is merged key by key. All this happens before any heavy import.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from introspect_ray.config.sections import RunConfig
from introspect_ray.config.task import TaskConfig
from introspect_ray.config.values import check_size
from introspect_ray.errors import UserError, one_line

PRESETS = Path(__file__).parent / "presets"
CHECKPOINT_EVERY = 50  # steps, on a cluster whose nodes may go
MOST_SHOWN = 200  # characters of a wrong value that a message repeats


def load_config(
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Merge the preset, a job's `defaults`, a YAML file and `overrides` into a validated RunConfig.

    defaults, overrides: values by dotted key. Raises UserError, which names the key, the value and the remedy.

    >>> from introspect_ray import load_config
    >>> config = load_config(overrides={"kl_weight": 0.1, "supervision.rule": "online"})
    >>> config.kl_weight, config.supervision.rule
    (0.1, 'online')
    """
    check_size(dict(overrides or {}), "the command line")
    given = merge(nest(defaults or {}), merge(read_yaml(Path(file)) if file else {}, nest(overrides or {})))
    preset = PRESETS / f"{_task_name(given)}.yaml"
    cfg = _validated(merge(read_yaml(preset), given) if preset.is_file() else given)
    return resolve_paths(_resolve_checkpoints(cfg))


def cluster_address(cfg: RunConfig) -> str | None:
    """The address of the cluster that a run joins; None: it starts a local one."""
    return cfg.ray_address or os.environ.get("RAY_ADDRESS")


def _resolve_checkpoints(cfg: RunConfig) -> RunConfig:
    """`cfg` with a number in train.checkpoint_every: the driver decides it, workers have another environment."""
    if cfg.train.checkpoint_every is not None:
        return cfg
    on_cluster = cfg.wait_for_nodes or cluster_address(cfg)
    return override(cfg, {"train.checkpoint_every": CHECKPOINT_EVERY if on_cluster else 0})


def resolve_paths(cfg: RunConfig) -> RunConfig:
    """`cfg` with absolute paths where it names files of this machine: workers have other working folders."""
    folders = {key: value for key in ("output_dir", "cache_dir") if (value := getattr(cfg, key))}
    policies = {
        "policy": cfg.policy,
        "reference_policy": cfg.reference_policy,
        "supervision.second_policy": cfg.supervision.second_policy,
        "eval.policy": cfg.eval.policy,
        "judge.policy": cfg.judge.policy,
        **({"judge.second.policy": cfg.judge.second.policy} if cfg.judge.second else {}),
    }
    against = [_absolute_policy(name) for name in cfg.eval.against]
    return override(
        cfg,
        {key: _absolute(value) for key, value in folders.items()}
        | {key: _absolute_policy(value) for key, value in policies.items()}
        | {"eval.against": against},
    )


def override(cfg: RunConfig, flat: Mapping[str, Any]) -> RunConfig:
    """A copy of `cfg` with dotted keys replaced, validated again. Raises UserError."""
    return _validated(merge(cfg.model_dump(), nest(flat)))


def file_sets(file: str | None, key: str) -> bool:
    """Whether a config file sets the dotted key."""
    node: Any = read_yaml(Path(file)) if file else {}
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def field_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted names of keys, e.g. "kl_weight", "supervision.agreement"."""
    names: list[str] = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += field_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def is_text(key: str) -> bool:
    """Whether the values of a dotted key are texts (or null)."""
    *sections, leaf = key.split(".")
    model: Any = RunConfig
    for name in sections:
        info = getattr(model, "model_fields", {}).get(name)
        kinds = (info.annotation, *get_args(info.annotation)) if info else ()
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    info = getattr(model, "model_fields", {}).get(leaf)
    return info is not None and {info.annotation, *get_args(info.annotation)} - {type(None), str | None} == {str}


def read_yaml(path: Path, what: str = "config file") -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError, which names the file (as `what`) and what is wrong with it."""
    try:
        data = yaml.safe_load(path.read_bytes().decode()) or {}
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except RecursionError:
        raise UserError(f"{what} {path} is nested too deeply to be read: correct it") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        raise UserError(f"{what} {path} is not valid YAML: {one_line(error):.300}") from None
    if not isinstance(data, dict):
        raise UserError(f"{what} {path}: expected a mapping of keys, found {type(data).__name__}")
    check_size(data, f"{what} {path}")
    return data


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested ones. Example: {"a.b": 1} -> {"a": {"b": 1}}.

    Raises UserError if a section and a key of it are both given.
    """
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


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names. Example: {"a": {"b": 1}, "c": 2} -> {"a.b": 1, "c": 2}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`low` with the leaves of `high` on top; neither is changed."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def _task_name(given: dict[str, Any]) -> Any:
    """The task that decides the preset. A malformed `task` has none: the validation refuses it."""
    task = given.get("task") or {}
    return task.get("name", TaskConfig().name) if isinstance(task, dict) else None


def _validated(nested: dict[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(nested)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _absolute_policy(name: str | None) -> str | None:
    """A path on this machine made absolute; bundled policies, Hub ids and URIs are left as they are."""
    if not name or name.partition(":")[0] == RunConfig.model_fields["policy"].default:
        return name
    path = Path(name).expanduser()
    try:
        return str(path.absolute()) if path.exists() else name
    except OSError:  # a name too long to be one of a file
        return name


def _absolute(folder: str) -> str:
    """A local folder as an absolute path; other URIs are left as they are.

    Relative folders of a submitted job (`ray job submit`) are below the home folder: its working folder is a copy
    that Ray deletes.
    """
    local = folder.removeprefix("file://")
    if "://" in local:
        return folder
    base = Path.home() if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()
    return str(base / Path(local).expanduser())


def _explain(error: ValidationError) -> str:
    """The first error as one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, field_names(), n=1)
        remedy = f": did you mean {close[0]!r}?" if close else "; --help SECTION prints the keys"
        return f"unknown config key {key!r}{remedy}{more}"
    message = first["msg"].removeprefix("Value error, ") + _yaml_remedy(first["type"], first["input"])
    return f"config key {key!r}: {message}, got {_shown(first['input'])}{more}" if key else f"{message}{more}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _yaml_remedy(kind: str, value: Any) -> str:
    """How to write what YAML read as something else; "" where that is not what is wrong."""
    if kind in ("tuple_type", "list_type"):
        return ", write it as a list ([a, b])"
    if kind == "dict_type":
        return ", write it as a mapping ({a: b}, with a space after each colon)"
    if kind == "string_type" and value is None:
        return ", write {a: b} with a space after each colon"
    if kind == "string_type" and not isinstance(value, (list, dict)):
        return ", put it in quotation marks"
    return ""
