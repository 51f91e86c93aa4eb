"""Parts of summaries for tests of tables and figures."""

from __future__ import annotations

from typing import Any


def summary(
    value: float,
    own: float,
    orig: float,
    behavior: float = 0.7,
    seed: int = 0,
    content: tuple[float, float] = (0.8, 0.7),
    changed: tuple[float, float] = (0.6, 0.7),
) -> dict[str, Any]:
    """content, changed: (Self, Orig)."""
    (own_content, orig_content), (own_changed, orig_changed) = content, changed
    return {
        "task": "organism", "policy": "organism", "seed": seed, "steps": 10, "kl_weight": value,
        "supervision": {"agreement": value},
        "explanation": {
            "self": {"em": own, "content": own_content, "changed_accuracy": own_changed},
            "orig": {"em": orig, "content": orig_content, "changed_accuracy": orig_changed},
        },
        "behavior": {"em": behavior, "cued": behavior + 0.1, "ablated": behavior + 0.2},
    }  # fmt: skip


def gap(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "ci": [low, high], "method": "95 % interval"}


def point(value: float, **gaps: tuple[float, float, float]) -> dict[str, Any]:
    """A row of the block "aggregate" of a sweep over λ."""
    return {"kl_weight": value, "gap": {part: gap(*bounds) for part, bounds in gaps.items()}}
