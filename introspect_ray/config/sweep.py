"""The keys of a sweep: how many of its trials run at once, and what is tried again."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SweepConfig(BaseModel):
    """sweep, reproduce: how trials run. No key of this section changes the result of a trial that runs to its end."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    trials_at_once: int | None = Field(None, ge=1)
    """Most trials that run at once; null: as many as the cluster and its autoscaler have room for, on one machine as
    many as its cores and GPUs keep busy. Each has its training workers and, for online labels, engines of its own."""
    max_failures: int = Field(2, ge=0)
    """How often a trial is started again whose process died or that lost its resources, from its last checkpoint. What
    would fail again is not: an alarm, a divergence and bad input are its result."""
    scheduler: Literal["all", "asha"] = "all"
    """all: every trial runs to its end. asha: Ray Tune's ASHA stops trials whose interim gap (eval.every) is not among
    the best share of those that came as far; which ones depends on who came first."""
    reduction: float = Field(3, gt=1)
    """asha: of n trials that come to a rung n / reduction go on; rungs are at eval.every, eval.every * reduction ..."""
    samples: int = Field(8, ge=1, le=10_000)
    """How many values are drawn of a key that takes a distribution: uniform(0,1), loguniform(1e-3,10), randint(1,9), or
    in steps quniform(0,1,0.1), as Ray Tune draws them."""
    seed: int = Field(0, ge=0)
    """Seed of those draws: the same sweep draws the same values, so that --resume knows them."""
