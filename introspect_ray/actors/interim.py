"""Scoring while a policy trains: a few held-out cases are asked of the engines, which changes nothing of the training.

rank 0 (the loop)      requests, of the weights that it has just delivered      never waits
the relabeler          collects the answers, and puts them on the status board
the driver             makes scores of them (runs/interim.py), for its tracker and for Ray Tune
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from introspect_ray.actors.pool import PendingRequest


@dataclass(frozen=True)
class Interim:
    """What is asked, and where the answers go. max_tokens: of an explanation."""

    case_ids: Sequence[str]
    max_tokens: int
    status: Any  # handle of a StatusBoard
    run_name: str


@dataclass(frozen=True)
class Asked:
    """The requests that were sent at a step."""

    step: int
    requests: Sequence[PendingRequest]  # of RolloutPool.ask_both
    interim: Interim
