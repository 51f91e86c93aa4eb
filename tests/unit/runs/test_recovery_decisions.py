"""Go on or stop after a failed attempt, and how its failure is named; without any actor."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.torch.config import _is_backend_nccl
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from introspect_ray.actors.weight_sync import WeightSyncError
from introspect_ray.config import RunConfig
from introspect_ray.errors import AlarmError, UserError
from introspect_ray.runs.recovery import decide, failed_part, process_groups


def test_only_failures_without_a_later_checkpoint_add_up():
    """Checkpoints left behind by failing attempts, limit 3: 4 (later), 4, 8 (later), 8, 4 (fallback)."""
    failures, before, seen = 0, 0, []
    for now in (4, 4, 8, 8, 4):
        failures, again = decide(failures, before, now, limit=3)
        seen.append((failures, again))
        before = now
    assert seen == [(1, True), (2, True), (1, True), (2, True), (3, False)]
    assert decide(0, 0, 0, limit=1) == (1, False)  # 1: the first one stops


def test_offloaded_shards_are_reduced_on_the_cpu():
    """Ray sets NCCL's variables for the pair of backends as for NCCL alone; none: Ray takes gloo without GPUs."""
    cfg = RunConfig.model_validate({"train": {"use_gpu": True, "offload": True}})
    assert process_groups(cfg).backend == "cpu:gloo,cuda:nccl" and _is_backend_nccl("cpu:gloo,cuda:nccl")
    assert process_groups(RunConfig()).backend is None


def task_error(cause: Exception) -> RayTaskError:
    """As an actor's exception reaches its caller."""
    return RayTaskError("method", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize("cause", [AlarmError("bound"), UserError("bad"), WeightSyncError("other bytes")])
def test_what_would_fail_again_is_raised_as_itself(cause):
    for failure in (cause, task_error(cause)):
        with pytest.raises(type(cause)) as caught:
            failed_part(WorkerGroupError("", {0: ValueError("beside it"), 1: failure}), {})
        assert caught.value is cause


def test_the_failed_part_is_named_in_one_line():
    engine, relabeler = ActorUnavailableError("killed", b"1" * 16), ActorUnavailableError("killed", b"2" * 16)

    def named(error: Exception) -> str:
        return failed_part(error, {engine.actor_id: "rollout actor 3"})

    assert named(WorkerGroupError("", {1: RuntimeError("CUDA out of memory\nmore")})) == (
        "training worker 1 failed (RuntimeError: CUDA out of memory)"
    )
    assert named(ControllerError(ValueError("no room"))) == "training failed (ValueError: no room)"
    dead = WorkerHealthCheckFailedError("no answer", ActorDiedError())
    assert named(WorkerGroupError("", {0: RuntimeError("connection reset by peer"), 1: dead})) == (
        "training worker 1 died"
    )
    assert named(WorkerGroupError("", {0: RuntimeError("reset"), 1: relabeler})) == "the relabeler died"
    assert named(WorkerGroupError("", {0: engine, 1: RuntimeError("reset")})) == "rollout actor 3 died"
    assert named(ActorDiedError()) == "Ray Train's controller died"
