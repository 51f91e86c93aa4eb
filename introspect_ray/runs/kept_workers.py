"""Ray Train's workers that stay for the next training of their place: a start takes longer than a short training.

    trial's process     train(spec) -->      KeptWorkers   an actor; it holds Ray Train's fit, in a thread
    training workers    next(n), done() -->                each asks for the n-th training (trainer.serve_worker)

A training that fails ends the workers, as it would without this; the next one starts new ones. On GPUs every training
has processes of its own: memory that another one left in pieces would cost more than a start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from introspect_ray.actors.trainer import Trained, WorkerSpec, serve_worker
from introspect_ray.config import RunConfig
from introspect_ray.runs.cluster import on_this_node
from introspect_ray.runs.lent_group import ray_trainer

if TYPE_CHECKING:  # the actor's process needs less
    from introspect_ray.runs.setup import SharedSetup

_CLOSE_S = 30.0


def can_keep(cfg: RunConfig) -> bool:
    """Whether the workers of a training may serve the next one: they are processes without a GPU in a group that
    stays."""
    return not (cfg.train.use_gpu or cfg.train.elastic or cfg.rollout.release)


class KeptWorkers:
    """The workers of one place. Trainings come one at a time; one whose process died ends by itself, as its relabeler
    died with it."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._given: list[WorkerSpec | None] = []  # since the workers were started; None: it has ended
        self._fit: asyncio.Future[Any] | None = None
        self._ended: asyncio.Future[Trained] | None = None
        self._closing = False

    async def train(self, spec: WorkerSpec) -> Trained | Exception:
        """What rank 0 returns, or the error that Ray Train's fit raised: raised here, it would come back as another."""
        async with self._one:
            loop = asyncio.get_running_loop()
            if self._fit is None:
                self._given = []
                desk = ray.get_runtime_context().current_actor
                self._fit = loop.run_in_executor(None, ray_trainer(spec, serve_worker, {"desk": desk}).fit)
            self._ended = loop.create_future()
            async with self._changed:
                self._given.append(spec)
                self._changed.notify_all()
            await asyncio.wait([self._ended, self._fit], return_when=asyncio.FIRST_COMPLETED)
            self._given[-1] = None
            if self._ended.done():
                return self._ended.result()
            fit, self._fit = self._fit, None
            error = fit.exception()
            return error if isinstance(error, Exception) else RuntimeError("the training workers ended by themselves")

    async def next(self, number: int) -> WorkerSpec | None:
        """The training of that number since the workers were started, when it comes; None: there will be none."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._given) > number or self._closing)
            return self._given[number] if len(self._given) > number else None

    async def done(self, trained: Trained) -> None:
        """Rank 0 has ended the training that was given last."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(trained)

    async def close(self) -> None:
        """Let the workers end; returns when they have."""
        async with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._fit is not None:
            await asyncio.wait([self._fit], timeout=_CLOSE_S)


KeptWorkersActor = ray.remote(num_cpus=0, max_restarts=-1)(KeptWorkers)


def keep_workers() -> Any:
    """The handle of a new KeptWorkers, without workers yet."""
    return KeptWorkersActor.options(scheduling_strategy=on_this_node()).remote()


@contextmanager
def keeping(setup: SharedSetup, cfg: RunConfig, wanted: bool) -> Iterator[SharedSetup]:
    """The set-up, with the workers of its place kept for all trainings of the body: before others train there.

    cfg: of the set-up. wanted: whether several trainings will follow each other there. Nothing is changed where they do
    not, where workers cannot be kept, and where somebody keeps them already.
    """
    if not wanted or setup.group.kept is not None or not can_keep(cfg):
        yield setup
        return
    kept = keep_workers()
    try:
        yield replace(setup, group=replace(setup.group, kept=kept))
        ray.get(kept.close.remote())
    finally:
        ray.kill(kept)
