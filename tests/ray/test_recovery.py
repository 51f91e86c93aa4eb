"""Parts of a running loop die by SIGKILL; the run goes on by itself and ends at the bits of an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
import ray
from ray.exceptions import RayActorError

from introspect_ray.actors import engines as engine_handles
from introspect_ray.actors.rollout import Exported, Request, Serving
from introspect_ray.actors.status import StatusBoardActor
from introspect_ray.actors.weight_sync import Expected, Tolerance, WeightSyncError
from introspect_ray.cases.probes import ProbePlan
from introspect_ray.config import override
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.errors import RepeatedFailure
from introspect_ray.labels.store import read_labels
from introspect_ray.policy import load_saved
from introspect_ray.records import StepMetrics
from introspect_ray.runs.identity import check_resume
from introspect_ray.runs.recovery import _progress
from introspect_ray.scores.summary import check_summary

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
EVERY = 6
STEPS = 36
TOLERANCE = Tolerance(2e-3, 2e-3)
SETTINGS = {
    "supervision__rule": "online",
    "supervision__agreement": 0.7,
    "lag": 1,
    "steps": STEPS,
    "train__checkpoint_every": EVERY,
}


@pytest.fixture(scope="module")
def undisturbed(live) -> Path:
    return live.train(**SETTINGS)[2]


def result(out: Path) -> tuple[bytes, list]:
    """Final weights and label table, to be equal bit for bit."""
    return (out / "policy" / "model.safetensors").read_bytes(), list(read_labels(str(out / "labels")))


def pids(title: str) -> list[int]:
    """Ray worker processes of this run whose title has `title`."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child.pid] if title in " ".join(child.cmdline()) else []
    return found


TITLES = {"rollout actor": "ray::RolloutWorker", "relabeler": "ray::Relabeler", "training worker": "RayTrainWorker"}
SAID = {"rollout actor": "asked again", "relabeler": "going on from step", "training worker": "going on from step"}


@pytest.mark.parametrize("part", TITLES)
def test_sigkill_of_any_part_changes_no_bit(live, undisturbed, part, capfd):
    step = random.Random(f"kill {part}").randrange(2, STEPS // 2)
    print(f"{part}: SIGKILL once step {step} is seen")
    killed: list[int] = []

    def kill_once(row: dict) -> None:
        if row["step"] >= step and not killed:
            killed.extend(pids(TITLES[part]))
            os.kill(killed[0], signal.SIGKILL)

    _, rows, out = live.train(on_row=kill_once, **SETTINGS)
    said = capfd.readouterr()
    print(said.out, said.err)
    assert len(killed) == 1 and [row["step"] for row in rows] == list(range(STEPS))
    assert result(out) == result(undisturbed)
    assert SAID[part] in said.err


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigkill_of_one_of_two_ranks_changes_no_bit(live, rank):
    """Both ranks write every checkpoint; the one that lives waits in a collective for the one that died."""
    settings = {**SETTINGS, "train__num_workers": 2, "batch_size": 25}
    killed: list[int] = []

    def kill_once(row: dict) -> None:
        if row["step"] >= EVERY + 2 and not killed:
            killed.extend(sorted(pids(TITLES["training worker"])))
            os.kill(killed[rank], signal.SIGKILL)

    undisturbed, disturbed = live.train(**settings)[2], live.train(on_row=kill_once, **settings)[2]
    assert len(killed) == 2
    assert result(disturbed) == result(undisturbed)


def test_an_engine_that_dies_before_the_evaluation_loads_the_exported_policy(live):
    """The workers and their weights are gone by then; the engine, back at M0, answers as the one that had them."""
    out = live.train(supervision__rule="fixed", steps=2)[2]
    pool, prepared = live.setup.pool, live.setup.prepared
    ids, sent = [case.case_id for case in prepared.test[:24]], fingerprints(load_saved(str(out / "policy"))[0])
    vocabulary = json.loads((out / "policy" / "config.json").read_text())["vocab_size"]
    probes = ProbePlan(
        prepared.train, prepared.train.used_tokens(vocabulary), live.cfg.rollout.probe_tokens, live.cfg.seed
    )
    exported = Exported(str(out / "policy"), probes.last(2))  # of the second version, in a run without other deliveries
    request = Request(
        "label", ids, Serving(2, Expected(2, sent, (), TOLERANCE)), home=0
    )  # to be had nowhere: it is served
    before = ray.get(pool._send(request).future)
    os.kill(pids(TITLES["rollout actor"])[0], signal.SIGKILL)
    again = pool.label_now(ids, Serving(2, Expected(2, sent, before.receipt.probe, TOLERANCE), exported))
    assert again == before.answers
    assert {pair.case_id: pair.cued_logprobs for pair in again} != {
        pair.case_id: pair.cued_logprobs for pair in live.setup.m0_test[:24]
    }


@pytest.mark.parametrize(
    ("leave", "fault"),
    [
        pytest.param(
            lambda actor: actor.engine.remote("transfer", "start_weight_update", {}),
            "cannot be used any more",
            marks=pytest.mark.slow,
            id="half updated",
        ),
        pytest.param(
            lambda actor: actor.__ray_call__.remote(lambda worker: time.sleep(600)),
            "did not answer within 2 s",
            id="stuck",
        ),
    ],
)
def test_an_engine_that_a_dead_training_left_behind_is_replaced(live, monkeypatch, leave, fault):
    """What a training worker leaves that dies during a transfer from GPU to GPU. A killed one that Ray restarts
    by itself is waited for."""
    pool, (actor,) = live.setup.pool, live.setup.pool.actors

    def process() -> int:
        return ray.get(actor.__ray_call__.remote(lambda worker: os.getpid()))

    assert pool.revive() == []
    first = process()
    left = leave(actor)
    with monkeypatch.context() as hurried:
        hurried.setattr(engine_handles, "ANSWER_S", 2.0)
        (note,) = pool.revive()
    assert note.startswith(f"rollout actor 0 {fault}") and note.endswith("started afresh")
    second = process()
    os.kill(second, signal.SIGKILL)
    assert pool.revive() == []
    assert len({first, second, process()}) == 3
    ids = [case.case_id for case in live.setup.prepared.test]
    assert pool.label_now(ids, Serving()) == live.setup.m0_test
    del left


def test_a_truncated_checkpoint_is_refused_by_name_and_the_one_before_is_used(live, undisturbed, capfd):
    """A finished run without its results is one that died at its end; what `--resume` does from there."""
    out = live.root / "truncated"
    shutil.copytree(undisturbed, out)
    shutil.rmtree(out / "policy")
    folders = sorted(path.name for path in (out / "checkpoints").iterdir() if path.is_dir())
    assert folders == [f"step-{step:08d}" for step in (STEPS - 2 * EVERY, STEPS - EVERY)]
    shard = next((out / "checkpoints" / folders[-1]).glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    _, rows, _ = live.train(out=out, **SETTINGS)
    said = capfd.readouterr().err
    assert f"checkpoints/{folders[-1]} is not used: {shard.name} has " in said
    assert rows[0]["step"] == STEPS - 2 * EVERY
    assert result(out) == result(undisturbed)


def test_a_delivery_that_cannot_be_verified_is_told_before_the_first_step(live):
    """With labels of M0 alone no step needs the engines: the delivery at the end must not be the first one."""
    rows: list[dict] = []
    with pytest.raises(WeightSyncError, match=r"weight version 0: .*larger rollout\.probe_tolerance"):
        live.train(on_row=rows.append, rollout__probe_tolerance=1e-12)
    assert rows == []


def test_the_policy_outlives_a_delivery_that_fails_at_the_end(live):
    """Steps of 5 a weight: M0's logprobs agree to 1e-5 with the engine's, those of such a policy to 1e-2. The
    remedy of the message works: --resume from the checkpoint with a larger tolerance ends at the same policy."""
    out, settings = live.root / "late", {"learning_rate": 5.0, "steps": 6, "train__checkpoint_every": 4}
    with pytest.raises(WeightSyncError, match=r"weight version 6: .*larger rollout\.probe_tolerance"):
        live.train(out=out, rollout__probe_tolerance=1e-4, **settings)
    exported = (out / "policy" / "model.safetensors").read_bytes()
    wider = {"rollout__probe_tolerance": 1e3, **settings}
    flat = {key.replace("__", "."): value for key, value in wider.items()}
    check_resume(override(live.cfg, {**flat, "output_dir": str(out)}))
    summary, rows, _ = live.train(out=out, **wider)
    assert [row["step"] for row in rows] == [4, 5]
    assert (out / "policy" / "model.safetensors").read_bytes() == exported
    check_summary(summary)


def test_a_status_board_that_is_gone_ends_no_run(live):
    board = StatusBoardActor.remote()
    assert _progress(board, "run") == "before its first step"
    ray.get(board.post.remote("run", StepMetrics(7, *[None] * (len(fields(StepMetrics)) - 1))))
    assert _progress(board, "run") == "after step 7"
    ray.kill(board)
    with pytest.raises(RayActorError):
        while True:  # it still answers until the signal has come
            ray.get(board.latest.remote())
    assert _progress(board, "run") == "at a step unknown (the status board is gone)"


def test_failure_after_failure_stops_with_one_line(live, capfd):
    """Two training workers in a row die before a first checkpoint."""
    killed: list[int] = []
    over = threading.Event()

    def kill_all() -> None:
        while not over.wait(0.2):
            for pid in set(pids(TITLES["training worker"])) - {*killed}:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_all)
    thread.start()
    try:
        with pytest.raises(
            RepeatedFailure, match=r"training .* before its first step: 2 failure\(s\) in a row .* --resume"
        ):
            live.train(**{**SETTINGS, "train__checkpoint_every": 0, "train__max_failures": 2})
    finally:
        over.set()
        thread.join()
    assert len(killed) >= 2  # one that is killed before its actor is there Ray starts again by itself
    assert "going on from step 0 (1 of 2 failures in a row)" in capfd.readouterr().err
