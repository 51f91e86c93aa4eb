"""A run whose engines have nothing to do while the policy trains gives their resources back meanwhile.

phase        holds, with rollout.release           holds otherwise
--------------------------------------------------------------------------
set-up       engines, the reference's worker       engines and training workers
training     training workers                      the same
evaluation   engines                               the same
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from introspect_ray.config import RunConfig
from introspect_ray.runs.setup import SharedSetup, make_group
from introspect_ray.runs.waiting import watched


@contextmanager
def training_room(cfg: RunConfig, setup: SharedSetup) -> Iterator[SharedSetup]:
    """The set-up for the training: without engines if cfg says so, or if others use them meanwhile. They get the
    exported policy afterwards."""
    if not cfg.rollout.release:
        yield setup if setup.turns is None else replace(setup, pool=setup.pool.without_engines())
        return
    setup.close()
    made = replace(setup, pool=setup.pool.without_engines(), group=make_group(cfg, engines=False))
    try:
        yield made
    finally:
        made.group.remove()


@contextmanager
def evaluation_room(cfg: RunConfig, setup: SharedSetup) -> Iterator[SharedSetup]:
    """The set-up for the evaluation: with new engines, which serve M0, if those of the set-up were ended."""
    if not cfg.rollout.release:
        yield setup
        return
    group = make_group(cfg, trainers=False)
    pool = setup.pool.another(group.engine_places())
    try:
        with watched(setup.status, "evaluation", pool.engines.waits):
            pool.wait()
        yield replace(setup, pool=pool, group=group)
    finally:
        pool.close()
        group.remove()
