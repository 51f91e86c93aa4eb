"""Nested mappings as dotted keys."""

from __future__ import annotations

from introspect_ray.config import flatten


def test_flatten_keeps_lists_and_none():
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1]}) == {"a.b.c": 1, "a.d": None, "e": [1]}
