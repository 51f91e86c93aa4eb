"""Go on or stop after a failed attempt, and how its failure is named; without any actor."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.torch.config import _is_backend_nccl
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from introspect_ray.actors.weight_sync import WeightSyncError
from introspect_ray.config import RunConfig
from introspect_ray.errors import AlarmError, Interrupted, Outage, UserError
from introspect_ray.runs.lent_group import process_groups
from introspect_ray.runs.recovery import decide, failed_part, interruption


def test_only_failures_without_a_later_checkpoint_add_up():
    """Checkpoints left behind by failing attempts, limit 3: 4 (later), 4, 8 (later), 8, 4 (fallback)."""
    failures, before, seen = 0, 0, []
    for now in (4, 4, 8, 8, 4):
        failures, again = decide(failures, before, now, limit=3)
        seen.append((failures, again))
        before = now
    assert seen == [(1, True), (2, True), (1, True), (2, True), (3, False)]
    assert decide(0, 0, 0, limit=1) == (1, False)  # 1: the first one stops


def test_what_is_no_failure_stops_no_run():
    """A lost node that is waited for, a resize: the count stays, and a later checkpoint clears it."""
    assert decide(2, 4, 4, limit=3, counts=False) == (2, True)
    assert decide(2, 4, 8, limit=1, counts=False) == (0, True)


def test_offloaded_shards_are_reduced_on_the_cpu():
    """Ray sets NCCL's variables for the pair of backends as for NCCL alone; none: Ray takes gloo without GPUs."""
    cfg = RunConfig.model_validate({"train": {"use_gpu": True, "offload": True}})
    assert process_groups(cfg).backend == "cpu:gloo,cuda:nccl" and _is_backend_nccl("cpu:gloo,cuda:nccl")
    assert process_groups(RunConfig()).backend is None


def task_error(cause: Exception) -> RayTaskError:
    """As an actor's exception reaches its caller."""
    return RayTaskError("method", "traceback", cause).as_instanceof_cause()


def test_an_attempt_that_ended_on_purpose_is_told_from_one_that_failed():
    """The ranks beside the one that stopped are ended in their collectives."""
    left = Interrupted("a node is about to go, the checkpoint of step 7 is stored")
    for cause in (left, task_error(left)):  # of a rank itself, and of the relabeler that it asked
        stopped = WorkerGroupError("", {0: RuntimeError("connection reset by peer"), 1: cause})
        assert interruption(stopped) == f"training stopped ({left})"
    assert interruption(WorkerGroupError("", {0: RuntimeError("CUDA out of memory")})) is None
    assert interruption(ActorDiedError()) is None


def test_an_outage_is_a_failure_of_the_attempt_and_named_before_the_ranks_beside_it():
    """Of a rank, of an actor that it asked, and of the relabeler that the driver asked for its totals."""
    away = Outage("storage s3://runs/x: cannot reach AWS (asked 30 times in 300 s)")
    for cause in (away, task_error(away)):
        failed = WorkerGroupError("", {0: RuntimeError("connection reset by peer"), 1: cause})
        assert failed_part(failed, {}) == f"training failed ({away})"
    assert isinstance(task_error(away), Outage) and failed_part(task_error(away), {}) == f"training failed ({away})"


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
