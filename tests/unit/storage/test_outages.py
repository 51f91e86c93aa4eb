"""A store or a hub that is away for a while is waited for; only what the user must mend is a UserError."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from introspect_ray import hub, patience
from introspect_ray.errors import Outage, UserError
from introspect_ray.patience import patiently
from introspect_ray.storage import check_writable, open_store
from introspect_ray.storage.checkpoints import CheckpointWriter, newest_usable
from introspect_ray.storage.digests import digest_of
from tests.faulty_proxy import FAULTS, FaultyProxy, faulty_proxy

LARGE = b"".join(i.to_bytes(4, "big") for i in range(5_000_000))  # 20 MB: three parts up, five parts down


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def fails(times: int, error: Exception) -> Iterator[Exception | None]:
    yield from [error] * times
    while True:
        yield None


@pytest.mark.parametrize("times", [0, 1, 12])
def test_an_outage_is_asked_again_until_it_ends(times: int) -> None:
    clock, errors = Clock(), fails(times, Outage("away"))

    def once() -> str:
        if error := next(errors):
            raise error
        return "there"

    assert patiently(once, 300.0, clock=clock, sleep=clock.sleep) == "there"
    assert len(clock.slept) == times
    bounds = [min(0.5 * 2**i, 15.0) for i in range(times)]
    assert all(bound / 2 <= slept <= bound for slept, bound in zip(clock.slept, bounds, strict=True))


def test_patience_has_an_end_and_says_how_long_it_was() -> None:
    clock, errors = Clock(), fails(10**6, Outage("the store is away"))

    def once() -> None:
        raise next(errors) or AssertionError

    with pytest.raises(Outage, match=r"^the store is away \(asked \d\d times in 300 s\)$"):
        patiently(once, 300.0, clock=clock, sleep=clock.sleep)
    assert sum(clock.slept) == pytest.approx(300.0)
    with pytest.raises(Outage, match="asked 1 times in 0 s"):
        patiently(once, 0.0, clock=clock, sleep=clock.sleep)


def test_what_the_user_must_mend_is_told_at_once() -> None:
    clock = Clock()

    def once() -> None:
        raise UserError("no such bucket")

    with pytest.raises(UserError):
        patiently(once, 300.0, clock=clock, sleep=clock.sleep)
    assert clock.slept == []


def test_a_run_gives_its_patience_to_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(patience.PATIENCE, raising=False)
    assert patience.patience_s() == patience.BEFORE_A_RUN_S
    monkeypatch.setenv(patience.PATIENCE, "")  # so that monkeypatch takes back what `use` sets
    patience.use(120.0)
    assert patience.patience_s() == 120.0
    with patience.at_most(2.0), patience.at_most(5.0):
        assert patience.patience_s() == 2.0
    assert patience.patience_s() == 120.0
    assert str(pickle.loads(pickle.dumps(Outage("x")))) == "x"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.PATIENCE, "60")
    monkeypatch.setattr(patience, "FIRST_S", 0.02)
    monkeypatch.setattr("introspect_ray.storage.s3._TRIES", 1)  # boto3 pauses for seconds
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff._BASE", 1)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff._MAX_BACKOFF", 0.02)


@pytest.fixture
def faulty(s3_env: str, s3_server: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server, 0.2, seed=3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def test_nothing_is_lost_or_changed_where_a_fifth_of_all_requests_fails(
    s3_env: str, faulty: FaultyProxy, tmp_path: Path
) -> None:
    """Small and large files, lists, deletions, folders: all as without faults, and every kind of fault occurred."""
    store = open_store(s3_env)
    store.check_writable()
    (tmp_path / "up/deep").mkdir(parents=True)
    (tmp_path / "up/large").write_bytes(LARGE)
    (tmp_path / "up/deep/small").write_bytes(b"small")
    for i in range(60):
        store.write_bytes(f"many/{i:02}", b"%d" % i)
    assert store.list("many") == [f"many/{i:02}" for i in range(60)]
    assert [store.read_bytes(f"many/{i:02}") for i in range(60)] == [b"%d" % i for i in range(60)]
    assert store.delete_prefix("many") == 60 and store.list("many") == [] and not store.exists("many/01")
    assert store.upload_dir(tmp_path / "up", "a") == 2
    assert store.take_dir(tmp_path / "up", "b") == {
        name: digest_of(tmp_path / "up" / name) for name in ("large", "deep/small")
    }
    for folder in "ab":
        assert store.download_dir(folder, tmp_path / folder) == 2
        assert (tmp_path / folder / "large").read_bytes() == LARGE
        assert (tmp_path / folder / "deep/small").read_bytes() == b"small"
    with pytest.raises(FileNotFoundError):
        store.read_bytes("none")
    failed = sum(faulty.seen[fault] for fault in FAULTS)
    assert all(faulty.seen[fault] for fault in FAULTS)
    assert 0.1 < failed / sum(faulty.seen.values()) < 0.3


def test_checkpoints_are_written_and_chosen_through_the_same(s3_env: str, faulty: FaultyProxy) -> None:
    writer = CheckpointWriter(s3_env, {"seed": 0}, 0, 1, None)
    for step in (2, 4, 6):
        writer.save(step, lambda folder: Path(folder, "shard").write_bytes(LARGE) and None)
    writer.wait()
    writer.settle()
    warnings: list[str] = []
    assert newest_usable(open_store(s3_env), {"seed": 0}, warnings.append) == "step-00000006" and warnings == []


def test_a_store_that_is_away_for_a_while_is_waited_for(s3_env: str, faulty: FaultyProxy) -> None:
    store = open_store(s3_env)
    store.write_bytes("x", b"1")
    faulty.away.set()
    threading.Timer(2.0, faulty.away.clear).start()
    began = time.monotonic()
    assert store.read_bytes("x") == b"1" and time.monotonic() - began >= 1.9


def test_one_that_stays_away_is_an_outage_of_one_line_and_before_a_run_a_user_error(
    s3_env: str, faulty: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patience.PATIENCE, "0.2")
    faulty.away.set()
    with pytest.raises(Outage, match=r"^storage s3://.* does not serve requests now \(SlowDown, GetObject\) \(asked"):
        open_store(s3_env).read_bytes("x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot reach http://127.0.0.1:9: check the network and AWS_ENDPOINT_URL"):
        check_writable(s3_env)


# --- the hub ------------------------------------------------------------------------------------------------------


def test_the_hub_is_asked_again_unless_it_refuses(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real errors of the hub's client on a server that refuses twice and then serves nothing of that name."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(503 if len(asked) <= 2 else 404)
            self.send_header("X-Error-Code", "RepoNotFound" if len(asked) > 2 else "")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    from huggingface_hub.errors import RepositoryNotFoundError

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(RepositoryNotFoundError):
            hub.snapshot("a/b", endpoint=endpoint)
        server.shutdown()
    assert len(asked) == 3
    monkeypatch.setenv(patience.PATIENCE, "0.1")
    with pytest.raises(Outage, match=r"^the hub does not answer for 'a/b' \(.*\) \(asked \d+ times in"):
        hub.snapshot("a/b", endpoint="http://127.0.0.1:9")
