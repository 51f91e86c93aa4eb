"""The keys of a sweep: how many of its trials run at once, and what is tried again."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SweepConfig(BaseModel):
    """sweep, reproduce: how trials run. No key of this section changes the result of a trial that runs to its end."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trials_at_once: int | None = Field(None, ge=1)
    """Most trials that run at once; null: as many as the cluster and its autoscaler have room for, on one machine one
    per share of its cores and GPUs. Each has its training workers and, for online labels, engines of its own."""
    max_failures: int = Field(2, ge=0)
    """How often a trial is started again whose process died or that lost its resources, from its last checkpoint. What
    would fail again is not: an alarm, a divergence and bad input are its result."""
