"""Parts of a configuration as nested dicts: read, nested, merged. load.py says which parts there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from introspect_ray.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError, which names the file and what is wrong with it."""
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UserError(f"config file {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"config file {path}: expected a mapping of keys, found {type(data).__name__}")
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


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`low` with the leaves of `high` on top; neither is changed."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out
