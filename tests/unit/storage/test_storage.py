"""Local and S3 stores hold the same contract; output folders are never deleted by accident."""

from __future__ import annotations

import os
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from introspect_ray.errors import Outage, UserError
from introspect_ray.patience import PATIENCE
from introspect_ray.storage import Store, check_writable, is_remote, open_store
from introspect_ray.storage import local as storage
from introspect_ray.storage.output_folder import MARKER, prepare_output


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = request.getfixturevalue("s3_env") if request.param == "s3" else tmp_path / "store"
    return open_store(uri)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_files_round_trip(store: Store) -> None:
    assert store.list() == []
    store.write_bytes("a/one.bin", b"1")
    store.write_bytes("a/one.bin", b"one")  # replaces
    store.write_bytes("ab/two.bin", b"")
    store.write_json("x.json", {"λ": 0.1})
    assert store.read_bytes("a/one.bin") == b"one"
    assert store.read_bytes("ab/two.bin") == b""
    assert store.read_json("x.json") == {"λ": 0.1}
    assert store.list() == ["a/one.bin", "ab/two.bin", "x.json"]
    assert store.list("a") == ["a/one.bin"]  # a folder, not a string prefix: ab/ is another
    assert store.exists("x.json") and not store.exists("a") and not store.exists("a/none")
    with pytest.raises(FileNotFoundError):
        store.read_bytes("a/none")


def test_delete_prefix_stays_in_the_folder(store: Store) -> None:
    for name in ("a/1", "a/b/2", "ab/3", "a.txt"):
        store.write_bytes(name, b"x")
    assert store.delete_prefix("a") == 2
    assert store.list() == ["a.txt", "ab/3"]
    assert store.delete_prefix("a.txt") == 1
    assert store.delete_prefix("none") == 0
    assert store.list() == ["ab/3"]


def test_folders_round_trip(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep").mkdir(parents=True)
    (source / "model.bin").write_bytes(bytes(range(256)) * 40_000)  # 10 MB: a multipart upload on S3
    (source / "deep/config.json").write_text("{}")
    assert store.upload_dir(source, "policy") == 2
    assert store.list("policy") == ["policy/deep/config.json", "policy/model.bin"]
    assert store.download_dir("policy", target) == 2
    assert tree(target) == tree(source)
    with pytest.raises(FileNotFoundError, match=r"no files in .*none"):
        store.download_dir("none", target)


def test_a_large_file_is_read_in_order_and_never_whole(store: Store, tmp_path: Path) -> None:
    """40 MB: ranges of 8 MB that S3 answers in any order."""
    (tmp_path / "source").mkdir()
    content = b"".join(i.to_bytes(4, "big") for i in range(10_000_000))
    (tmp_path / "source/large").write_bytes(content)
    store.upload_dir(tmp_path / "source", "a")
    pieces: list[bytes] = []

    class Target:
        def write(self, data: bytes) -> None:
            pieces.append(bytes(data))

    store.read_into("a/large", Target())
    assert b"".join(pieces) == content and max(map(len, pieces)) <= 1 << 22
    with pytest.raises(FileNotFoundError):
        store.read_into("a/none", Target())


def test_a_store_travels_between_processes(store: Store) -> None:
    store.write_bytes("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read_bytes("x") == b"1"


def test_preflight_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    check_writable(store.uri)
    assert store.list() == []
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x"])
def test_names_stay_in_the_store(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="leaves its store"):
        store.write_bytes(name, b"")


def test_a_failed_local_write_keeps_the_old_file_and_leaves_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    store.write_bytes("x", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*x: .*No space left on device; make room"):
        store.write_bytes("x", b"new")
    assert tree(tmp_path) == {"x": b"old"}


def test_files_being_written_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-123").write_bytes(b"half")
    assert open_store(tmp_path).list() == []


def test_uris(tmp_path: Path) -> None:
    assert is_remote("s3://b/p") and not is_remote("runs/x") and not is_remote("file:///x") and not is_remote(tmp_path)
    assert open_store("s3://b/p/").join("a", "/b") == "s3://b/p/a/b"
    assert open_store("s3://b").local_path() is None
    assert open_store(f"file://{tmp_path}").local_path("a") == tmp_path / "a"
    assert Path(open_store("runs/x").uri) == Path.cwd() / "runs/x"
    with pytest.raises(UserError, match=r"scheme 'gs' is not supported, use a local path or s3://"):
        open_store("gs://b/p")


def test_local_preflight_names_the_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; choose another folder"):
        check_writable(tmp_path / "file" / "run")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write")
def test_local_preflight_without_rights() -> None:
    with pytest.raises(UserError, match=r"/proc is not writable .*choose another folder"):
        check_writable("/proc/run")


# --- output folders -----------------------------------------------------------------------------------------------


def test_a_new_output_folder_is_marked_and_kept(store: Store) -> None:
    prepare_output(store.uri)
    assert store.list() == [MARKER]
    with pytest.raises(UserError, match=r"not empty \(1 files\): pass --resume to continue, --overwrite to delete"):
        prepare_output(store.uri)


def test_resume_keeps_and_overwrite_empties(store: Store) -> None:
    prepare_output(store.uri, resume=True)  # nothing to resume: starts afresh
    store.write_bytes("labels/1.parquet", b"x")
    prepare_output(store.uri, resume=True)
    assert store.list() == [MARKER, "labels/1.parquet"]
    prepare_output(store.uri, overwrite=True)
    assert store.list() == [MARKER]


@pytest.mark.parametrize("mode", ["resume", "overwrite"])
def test_folders_of_others_are_left_alone(store: Store, mode: str) -> None:
    store.write_bytes("thesis.txt", b"x")
    store.write_bytes("summary.json", b"{}")
    with pytest.raises(UserError, match=r"holds 2 files but no .introspect-ray.json: .* left alone"):
        prepare_output(store.uri, **{mode: True})
    assert store.list() == ["summary.json", "thesis.txt"]


@pytest.mark.parametrize("where", ["home", "cwd", "above"])
def test_home_and_working_folder_are_never_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.setenv("HOME", str(inner if where == "home" else tmp_path / "elsewhere"))
    if where != "home":
        monkeypatch.chdir(inner)
    target = tmp_path if where == "above" else inner
    (target / MARKER).write_text("{}")
    (target / "kept").write_text("")
    with pytest.raises(UserError, match="is or holds your home or working folder"):
        prepare_output(target, overwrite=True)
    assert (target / "kept").exists()


def test_overwrite_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("x")
    prepare_output(tmp_path / "run")
    os.symlink(tmp_path / "precious", tmp_path / "run/link")
    prepare_output(tmp_path / "run", overwrite=True)
    assert (tmp_path / "precious/file").read_text() == "x"
    assert not (tmp_path / "run/link").exists()


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        prepare_output(tmp_path, resume=True, overwrite=True)


# --- what S3 refuses ----------------------------------------------------------------------------------------------


def refusal(uri: str) -> str:
    with pytest.raises(UserError) as caught:
        check_writable(uri)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "variable, code", [("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch")]
)
def test_refused_credentials(s3_env: str, monkeypatch: pytest.MonkeyPatch, variable: str, code: str) -> None:
    monkeypatch.setenv(variable, "wrong")
    assert f"refused the credentials ({code}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refusal(s3_env)


def test_missing_credentials(s3_env: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert "no S3 credentials: set AWS_ACCESS_KEY_ID" in refusal(s3_env)


def test_missing_bucket(s3_env: str) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    assert f"bucket 'absent' does not exist at {endpoint}: create it, or check AWS_ENDPOINT_URL" in refusal(
        "s3://absent/x"
    )


def test_unreachable_endpoint(s3_env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "0.5")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nothing listens
    assert "cannot reach http://127.0.0.1:9: check the network and AWS_ENDPOINT_URL" in refusal(s3_env)


def test_invalid_bucket_name(s3_env: str) -> None:
    assert "not a valid S3 location (s3://bucket/prefix)" in refusal("s3://a b/x")


def test_a_connection_that_always_breaks_off_is_an_error_of_one_line(
    s3_env: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server that promises 100 bytes and closes after 10, however often it is asked."""

    class Short(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.send_header("ETag", '"x"')
            self.end_headers()

        def do_GET(self) -> None:
            asked.append(self.path)
            self.do_HEAD()
            self.wfile.write(b"x" * 10)

        def log_message(self, *_: object) -> None:
            pass

    asked: list[str] = []
    monkeypatch.setenv(PATIENCE, "0.5")
    with ThreadingHTTPServer(("127.0.0.1", 0), Short) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with (
            pytest.raises(Outage, match=r"^storage s3://runs/.* cannot reach .* \(asked \d times") as caught,
            open(tmp_path / "x", "wb") as x,
        ):
            open_store(s3_env).read_into("x", x)
        server.shutdown()
    assert "\n" not in str(caught.value) and len(asked) > 1
