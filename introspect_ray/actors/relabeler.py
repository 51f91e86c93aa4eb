"""The relabeler actor: waits for a step's pairs, applies the pure rule, records and buffers the labels.

It makes no learning decision.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from introspect_ray.actors.interim import Asked
from introspect_ray.actors.metrics import Meters, idle_share, run_name
from introspect_ray.actors.pool import PendingRequest, RolloutPool, assessed, receipts
from introspect_ray.actors.rollout import RolloutResult, Serving
from introspect_ray.actors.weight_sync import verify
from introspect_ray.cases.lookup import ids_of
from introspect_ray.config import RunConfig
from introspect_ray.engines.protocol import PromptTokens
from introspect_ray.errors import AlarmError, Interrupted, one_line
from introspect_ray.judges import JudgeReport
from introspect_ray.labels.alarms import AgreementCounts, check_agreement, check_verdicts, stop_on
from introspect_ray.labels.rules import Sources, make_labels, realised_agreement
from introspect_ray.labels.store import LabelWriter, count_labels, truncate_labels
from introspect_ray.records import Answers, BehaviorPair, Label, StepLabels, Wait
from introspect_ray.schedule import plan_ids
from introspect_ray.scores.metrics import off_format


@dataclass
class _StepBuffer:
    """The labels of one step on their way to the ranks."""

    ready: asyncio.Future[StepLabels]
    fetched_by: set[int] = field(default_factory=set)
    halt: bool = False  # decided by the first fetch, so that all ranks are told the same
    offered: dict[int, Sequence[BehaviorPair]] = field(default_factory=dict)  # by rank, its shard of the pairs

    def fail(self, error: Exception) -> None:
        self.ready.set_exception(error)
        self.ready.exception()  # marks it as retrieved, in case no rank is left to fetch it


class Relabeler:
    """Labels by step. `relabel` (or `offer`) fills a step, `fetch` waits for it; a failed step raises in every fetch.

    The requests of the loop bound the buffer: they are at most lag + sync_every steps ahead.
    """

    def __init__(self, cfg: RunConfig, sources: Sources, labels_uri: str, pool: RolloutPool | None = None) -> None:
        """pool: sends a request again whose engine died; not needed without rollouts."""
        self._cfg, self._sources, self._pool = cfg, sources, pool
        self._world = 0  # training workers, once they have entered
        self._ids = ids_of(sources.labels)
        self._uri, self._writer = labels_uri, LabelWriter(labels_uri)
        self._steps: dict[int, _StepBuffer] = {}
        self._agreement = AgreementCounts()  # of the labels since this relabeler started
        self._judged: JudgeReport | None = None  # on the free responses since this relabeler started
        self._free_since = time.perf_counter()
        self._scoring: list[asyncio.Task[None]] = []
        self._stopped = False
        self._halting = False
        self._meters = Meters(run_name(cfg.output_dir))
        self.notes: list[str] = []  # failures that were recovered from
        self.seconds = {"relabel": 0.0, "rollout": 0.0, "rollout_idle": 0.0}

    async def enter(self, world: int) -> None:
        """Serve a group of `world` training workers: rank 0's first call. A relabeler serves one group.

        Raises Interrupted for a second one, which Ray Train starts by itself when the cluster has room for more or
        fewer workers than run: recovery starts anew, with a checkpoint and a relabeler for them.
        """
        if self._world:
            raise Interrupted(f"there is room for {world} training workers, {self._world} were running")
        self._world = world

    async def entered(self) -> int:
        """Training workers served; 0: none has come yet."""
        return self._world

    async def waits(self) -> list[Wait]:
        """What keeps labels from being made."""
        return self._pool.engines.waits() if self._pool else []

    async def relabel(
        self, step: int, version: int, serving: Serving | None, deliveries: list[Any], groups: list[PendingRequest]
    ) -> None:
        """Make the labels of `step` from futures of the deliveries of `version` and of its rollout groups.

        The request of an engine that died is sent again, never left out: a step has all its labels, of its version, or
        none.
        """
        slot = self._slot(step)
        try:
            results: Sequence[Any] = []
            if serving and serving.expected:
                verify(serving.expected, await receipts(deliveries))
            if groups and self._pool:
                results = await self._pool.collect(groups, f"step {step}", self.notes.append)
            pairs = [pair for result in results for pair in result.pairs]
            seconds, idle = sum(result.seconds for result in results), sum(result.idle_s for result in results)
            tokens = sum((result.prompt_tokens for result in results), PromptTokens())
            if before := self._steps.get(step - 1):  # late if an engine died; the table keeps the order
                await asyncio.wait([before.ready])
            self._require_running()
            self._check_verdicts(results)
            slot.ready.set_result(self._label(step, version, pairs, seconds, idle, tokens.hit_rate))
        except Exception as error:  # raised by every rank's fetch of this step
            slot.fail(error)

    async def score(self, asked: Asked) -> None:
        """Put the answers to requests beside the training onto the status board. One that is lost costs a score."""
        self._scoring.append(asyncio.create_task(self._score(asked)))

    async def _score(self, asked: Asked) -> None:
        if self._pool is None:
            return
        where = f"scores at step {asked.step}"
        try:
            results = await self._pool.collect(asked.requests, where, self.notes.append)
        except (AlarmError, RuntimeError, ValueError) as error:
            self.notes.append(f"{where}: there are none ({one_line(error)})")
            return
        answers = Answers(asked.step, *assessed(results))
        await asked.interim.status.post_answers.remote(asked.interim.run_name, answers)

    async def offer(self, step: int, version: int, rank: int, pairs: Sequence[BehaviorPair]) -> None:
        """Take a rank's shard of the pairs of `step`, made by the learner; the last shard completes the step."""
        slot = self._slot(step)
        slot.offered[rank] = pairs
        if len(slot.offered) < self._world:
            return
        try:
            self._require_running()
            slot.ready.set_result(self._label(step, version, unshard(slot.offered)))
        except Exception as error:  # as in `relabel`
            slot.fail(error)

    async def fetch(self, step: int, rank: int) -> StepLabels:
        """The labels rank, rank + world, ... of `step`; waits until they are made."""
        slot = self._slot(step)
        made: StepLabels = await asyncio.shield(slot.ready)
        slot.halt = slot.halt if slot.fetched_by else self._halting
        slot.fetched_by.add(rank)
        if len(slot.fetched_by) == self._world:
            del self._steps[step]
            self._count_buffer()
        return StepLabels(
            made.labels[rank :: self._world],
            made.pairs[rank :: self._world],
            made.realised_agreement,
            made.off_format,
            made.prefix_hit_rate,
            made.rollout_s,
            made.rollout_idle_s,
            made.relabeler_idle_s,
            slot.halt,
        )

    async def pending(self) -> list[Label]:
        """The labels of all steps that are not consumed yet, once they are made; flushes the label table."""
        made = [await asyncio.shield(slot.ready) for _, slot in sorted(self._steps.items())]
        self._require_running()
        self._writer.flush()
        return [label for step in made for label in step.labels]

    async def restore(self, step: int, labels: Sequence[Label]) -> list[int]:
        """Start or go on at `step` with the unconsumed labels of its checkpoint; returns the steps they belong to.

        Rank 0's call after `enter`. Labels in the table of `step` and later are deleted: they are made again.
        """
        self._require_running()
        truncate_labels(self._uri, step)
        self._writer.append(labels)
        self._agreement.add(labels)
        by_step: dict[int, list[Label]] = {}
        for label in labels:
            by_step.setdefault(label.provenance.step, []).append(label)
        for later, ours in by_step.items():
            agreement = realised_agreement(ours)
            self._slot(later).ready.set_result(StepLabels(ours, [], agreement, None, None, 0.0, 0.0, 0.0))
        return sorted(by_step)

    async def halt(self) -> None:
        """The job was asked to end: the training workers hear of it with their next labels."""
        self._halting = True

    async def stop(self) -> list[str]:
        """Write nothing more, not even labels being made: another relabeler owns the table. Returns the notes."""
        self._stopped = True
        return self.notes

    async def finish(self) -> dict[str, float | None]:
        """Complete the label table. Returns its totals over the whole run, and this relabeler's seconds by activity."""
        await asyncio.gather(*self._scoring)
        self._writer.close()
        counts = count_labels(self._uri)
        return {
            "realised_at_labelling": counts.agreement,
            "split_pairs": counts.split_pairs,
            **{f"{name}_s": value for name, value in self.seconds.items()},
        }

    def _require_running(self) -> None:
        """Late requests of a dead training worker must not reach the table, which another relabeler owns by now."""
        if self._stopped:
            raise RuntimeError("this relabeler was stopped: the run went on without it")

    def _check_verdicts(self, results: Sequence[RolloutResult]) -> None:
        for result in results:
            if result.judged:
                self._judged = self._judged + result.judged if self._judged else result.judged
        if self._judged:
            check_verdicts(self._judged, self._cfg.judge.max_unjudged)

    def _slot(self, step: int) -> _StepBuffer:
        if step not in self._steps:
            self._steps[step] = _StepBuffer(asyncio.get_running_loop().create_future())
            self._count_buffer()
        return self._steps[step]

    def _count_buffer(self) -> None:
        self._meters.record({"introspect_buffer_steps": len(self._steps)})

    def _label(
        self,
        step: int,
        version: int,
        pairs: Sequence[BehaviorPair],
        rollout: float = 0.0,
        rollout_idle: float = 0.0,
        prefix_hit_rate: float | None = None,
    ) -> StepLabels:
        """The labels of `step` from all its pairs. rollout: seconds of the engines; the learner counts its own."""
        began = time.perf_counter()
        idle, self._free_since = began - self._free_since, began
        wrong = [pair.case_id for pair in pairs if pair.weight_version != version]
        if wrong:
            raise RuntimeError(
                f"step {step}: {len(wrong)} pairs are not of weight version {version}, e.g. {wrong[0]!r}"
            )
        ids, pairs = plan_ids(self._cfg, self._ids, step), self._sources.reading.pairs(pairs, self._sources.labels)
        labels = make_labels(self._cfg, self._sources, step, ids, pairs)
        self._writer.append(labels)
        self._agreement.add(labels)
        if alarm := check_agreement(self._agreement, self._cfg.supervision.agreement, self._cfg.alarms.agreement):
            self._writer.flush()  # the wrong labels can be audited
            stop_on(alarm)
        self.seconds["rollout"] += rollout
        self.seconds["rollout_idle"] += rollout_idle
        self.seconds["relabel"] += time.perf_counter() - began
        self._free_since = time.perf_counter()
        self._meters.record(
            {
                "introspect_rollout_idle_share": idle_share(rollout_idle, rollout),
                "introspect_relabeler_idle_share": idle_share(idle, self._free_since - began),
            }
        )
        off = off_format(pairs) if pairs else None
        return StepLabels(labels, pairs, realised_agreement(labels), off, prefix_hit_rate, rollout, rollout_idle, idle)


def unshard(shards: Mapping[int, Sequence[BehaviorPair]]) -> list[BehaviorPair]:
    """The pairs in plan order, from each rank's shard (rank, rank + world, ... of the plan): the inverse of sharding.

    Raises ValueError if the shards cannot be of one plan by their lengths.
    """
    pairs: list[BehaviorPair] = [pair for shard in shards.values() for pair in shard]
    for rank, shard in shards.items():
        pairs[rank :: len(shards)] = shard
    return pairs


RelabelerActor = ray.remote(num_cpus=0)(Relabeler)
