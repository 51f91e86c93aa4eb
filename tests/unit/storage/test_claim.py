"""An output folder belongs to one live job, on a local disk and on S3."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from introspect_ray.errors import AlarmError, UserError
from introspect_ray.storage import Store, claim, open_store
from introspect_ray.storage.claim import Owner, check_free, held
from introspect_ray.storage.claim_places import NAME, place_of
from introspect_ray.storage.output_folder import MARKER, prepare_output


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = request.getfixturevalue("s3_env") if request.param == "s3" else tmp_path / "store"
    return open_store(uri)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT_S", 0.1)
    monkeypatch.setattr(claim, "LEASE_S", 1.0)


ELSEWHERE = replace(Owner.this("sweep"), id="x", host="far", machine="another", pid=7, user="ann", since="yesterday")


@contextmanager
def other_job(uri: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder until its standard input ends."""
    code = (
        "import sys; from introspect_ray.storage.claim import held\n"
        "with held(sys.argv[1], 'train'): print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, uri], **pipes) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_folder_in_use_is_refused_and_one_that_was_left_or_whose_owner_died_is_not(store: Store) -> None:
    with other_job(store.uri) as process:
        who = rf"belongs to a job that runs: `train` on {os.uname().nodename} \(process {process.pid} of .*\), since 20"
        for attempt in (check_free, lambda uri: ExitStack().enter_context(held(uri, "train"))):
            with pytest.raises(UserError, match=who):
                attempt(store.uri)
        process.kill()  # SIGKILL: the claim stays
        process.wait()
        assert store.list() == [NAME]
        with held(store.uri, "train"):
            pass
    assert store.list() == []
    with other_job(store.uri) as process:
        process.communicate("")
        assert store.list() == []


def test_no_job_may_be_above_or_below_another(store: Store) -> None:
    store.write_bytes("sweep/trial/x", b"")
    with other_job(store.join("sweep")):
        check_free(store.join("sweep2"))
        with pytest.raises(UserError, match=r"trial is in .*sweep, which belongs to a job that runs: `train`"):
            check_free(store.join("sweep/trial"))
        with pytest.raises(UserError, match=r"has in it .*sweep, which belongs to a job that runs: `train`"):
            check_free(store.uri)


def test_parts_of_a_job_work_inside_its_own_folder(store: Store) -> None:
    """An evaluation within `reproduce`, say. The same folder twice is another job, in one process too."""
    with held(store.uri, "reproduce"):
        check_free(store.join("runs/1"))
        with held(store.join("runs/1"), "evaluate"):
            assert store.list() == [NAME]
        with pytest.raises(UserError, match="belongs to a job that runs: `reproduce`"):
            check_free(store.uri)
    assert store.list() == []


def test_an_owner_on_another_machine_is_watched(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    place = place_of(store)
    assert place.create(ELSEWHERE.content) and not place.create(b"{}")
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.3):
            assert place.beat(ELSEWHERE.content)

    beating = threading.Thread(target=live)
    beating.start()
    with pytest.raises(UserError, match=r"runs: `sweep` on far \(process 7 of ann\), since yesterday; wait until"):
        check_free(store.uri)
    stop.set()
    beating.join()
    began = time.monotonic()
    with held(store.uri, "train"):
        assert place.read().owner != ELSEWHERE.content
    assert time.monotonic() - began > claim.LEASE_S
    assert "was that of `sweep` on far (process 7 of ann), since yesterday, which has ended: taken over" in (
        capsys.readouterr().out
    )


def test_of_many_that_take_over_one_succeeds(store: Store) -> None:
    place, done = place_of(store), []
    assert place.create(b"dead")
    seen, start = place.read(), threading.Barrier(8)

    def take(name: bytes) -> None:
        start.wait()
        if place.replace(seen, name):
            done.append(name)

    threads = [threading.Thread(target=take, args=(b"%d" % number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [place.read().owner] == done


def test_a_sign_of_life_keeps_a_claim_from_being_replaced_and_others_from_deleting_it(store: Store) -> None:
    place = place_of(store)
    assert place.create(b"mine")
    seen = place.read()
    assert place.beat(b"mine") and not place.beat(b"another")
    assert not place.replace(seen, b"another")
    place.remove(b"another")
    assert place.read().owner == b"mine"


def test_a_job_whose_folder_was_taken_over_ends(store: Store) -> None:
    """As after a suspension: the main thread is interrupted wherever it is, and the new owner's claim stays."""
    place = place_of(store)
    lost = r"was taken over by `sweep` on far .*: this job had given no sign of life"
    with pytest.raises(AlarmError, match=lost), held(store.uri, "train"):
        assert place.replace(place.read(), ELSEWHERE.content)
        time.sleep(30)
    assert place.read().owner == ELSEWHERE.content


def test_a_claim_is_no_file_of_the_run(store: Store) -> None:
    with held(store.uri, "train"):
        prepare_output(store.uri)
        store.write_bytes("labels/1.parquet", b"x")
        prepare_output(store.uri, overwrite=True)
        assert store.list() == [NAME, MARKER]
    assert store.list() == [MARKER]


def test_a_process_that_has_the_number_of_a_dead_owner_is_not_it(tmp_path: Path) -> None:
    this = Owner.this("train")
    assert place_of(open_store(tmp_path)).create(replace(this, pid=os.getppid(), started=1).content)
    check_free(tmp_path)
    assert replace(this, id="left behind by this process").lives() is False


def test_a_claim_on_a_full_disk_still_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_of(open_store(tmp_path))
    assert place.create(b"mine")
    before = place.read().mark
    monkeypatch.setattr(Path, "write_bytes", lambda *_: pytest.fail("a sign of life needs room"))
    assert place.beat(b"mine") and place.read().mark != before


def test_sigkill_is_seen_before_the_parent_has_waited(tmp_path: Path) -> None:
    with other_job(str(tmp_path)) as process:
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # what is left is a zombie
        check_free(tmp_path)
