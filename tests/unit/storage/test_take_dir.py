"""Files on their way into a store: read once and hashed meanwhile, moved where they can be, from the scratch folder."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path

import pytest

from introspect_ray.errors import UserError
from introspect_ray.storage import open_store
from introspect_ray.storage.checkpoints import CheckpointWriter, Saved, scratch_of
from introspect_ray.storage.digests import HashedReader, digest_of, in_parallel
from introspect_ray.storage.s3 import part_bytes
from introspect_ray.storage.scratch import SCRATCH, scratch_folder, scratch_root

LARGE = bytes(range(256)) * 80_000  # 20 MB: three parts of an S3 upload
FILES = {"model.bin": LARGE, "deep/empty": b"", "deep/config.json": b"{}"}
LISTED = {
    name: {"bytes": len(data), "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest()}
    for name, data in FILES.items()
}


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        file = tmp_path / "source" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return tmp_path / "source"


def contents(uri: str) -> dict[str, bytes]:
    store = open_store(uri)
    return {name: store.read_bytes(name) for name in store.list()}


def test_on_one_disk_files_are_moved(tmp_path, filled):
    inode = (filled / "model.bin").stat().st_ino
    assert open_store(tmp_path / "out").take_dir(filled, "step") == LISTED
    assert contents(str(tmp_path / "out")) == {f"step/{name}": data for name, data in FILES.items()}
    assert (tmp_path / "out/step/model.bin").stat().st_ino == inode
    assert open_store(filled).list() == []


def test_to_another_disk_they_are_copied(tmp_path, filled, monkeypatch):
    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "rename", other_disk)
    assert open_store(tmp_path / "out").take_dir(filled, "step") == LISTED
    assert contents(str(tmp_path / "out")) == {f"step/{name}": data for name, data in FILES.items()}


def test_to_s3_each_file_is_read_once(s3_env, filled, monkeypatch):
    """20 MB go in three parts."""
    read: list[int] = []
    plain = HashedReader.read

    def counted(self: HashedReader, size: int = -1) -> bytes:
        read.append(len(data := plain(self, size)))
        return data

    monkeypatch.setattr(HashedReader, "read", counted)
    assert open_store(s3_env).take_dir(filled, "step") == LISTED
    assert contents(s3_env) == {f"step/{name}": data for name, data in FILES.items()}
    assert sum(read) == sum(map(len, FILES.values()))


def test_an_upload_has_at_most_ten_thousand_parts():
    """8 MiB each, as boto3 cuts, up to 83.9 GB; one rank's 98 GB need 9.8 MB."""
    assert part_bytes(0) == part_bytes(10_000 * (8 << 20)) == 8 << 20
    assert part_bytes(98_000_000_000) == 9_800_000
    assert part_bytes(10_000 * (8 << 20) + 1) == (8 << 20) + 1


def test_a_reader_hashes_what_it_gives():
    reader = HashedReader(io.BytesIO(b"abcdef"))
    assert (reader.read(4), reader.read()) == (b"abcd", b"ef")
    assert reader.digest.written() == {"bytes": 6, "blake2b": hashlib.blake2b(b"abcdef", digest_size=16).hexdigest()}


def test_the_first_failure_of_several_is_raised_and_a_file_is_digested(tmp_path):
    (tmp_path / "x").write_bytes(LARGE)
    assert in_parallel(digest_of, [tmp_path / "x"] * 3) == [LISTED["model.bin"]] * 3
    with pytest.raises(FileNotFoundError, match="none"):
        in_parallel(digest_of, [tmp_path / "x", tmp_path / "none"])


def test_files_that_are_being_written_are_in_no_list(tmp_path):
    store = open_store(tmp_path)
    for name in (".tmp-rank-0/a", "b/.tmp-1/c", "b/.tmp-d", "b/e"):
        store.write_bytes(name, b"x")
    assert store.list() == ["b/e"]


# --- the scratch folder -------------------------------------------------------------------------------------------


def test_the_named_folder_is_used_and_left_clean(tmp_path, monkeypatch):
    monkeypatch.setenv(SCRATCH, str(tmp_path))
    with scratch_folder("policy") as folder:
        assert Path(folder).parent == tmp_path == scratch_root()
        Path(folder, "x").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("named", ["/nowhere/nvme", __file__])
def test_a_folder_that_cannot_be_used_is_refused_before_training(s3_env, monkeypatch, named):
    monkeypatch.setenv(SCRATCH, named)
    with pytest.raises(UserError, match=rf"INTROSPECT_RAY_SCRATCH={named} is no folder on node .*mount the disk"):
        CheckpointWriter(s3_env, {}, 0, 1, None)


def test_a_checkpoint_for_a_folder_is_written_beside_it_and_one_for_s3_into_the_scratch_folder(
    tmp_path, s3_env, monkeypatch
):
    monkeypatch.setenv(SCRATCH, str(tmp_path / "nvme"))
    (tmp_path / "nvme").mkdir()
    assert scratch_of(open_store(tmp_path / "out"), 3) == tmp_path / "out" / "checkpoints" / ".tmp-rank-3"
    places = [scratch_of(open_store(f"{s3_env}/{run}"), rank) for run in "ab" for rank in (0, 1)]
    assert len(set(places)) == 4 and {place.parent for place in places} == {tmp_path / "nvme"}


@pytest.mark.parametrize("remote", [False, True])
def test_what_a_killed_process_left_is_overwritten_and_nothing_stays(tmp_path, s3_env, monkeypatch, remote):
    monkeypatch.setenv(SCRATCH, str(tmp_path / "nvme"))
    (tmp_path / "nvme").mkdir()
    out = s3_env if remote else str(tmp_path / "out")
    scratch = scratch_of(open_store(out), 0)
    scratch.mkdir(parents=True)
    (scratch / "half").write_bytes(b"x")
    saved: list[Saved] = []
    writer = CheckpointWriter(out, {}, 0, 1, None)
    writer.on_saved = saved.append
    writer.save(2, lambda folder: Path(folder, "shard").write_bytes(b"x" * 100) and None)
    writer.wait()
    names = [f"checkpoints/step-00000002/{name}" for name in ("manifest.json", "rank-0.json", "shard")]
    assert open_store(out).list() == names and not scratch.exists()
    manifest = len(open_store(out).read_bytes(names[0]))
    (one,) = saved
    assert (one.step, one.rank, one.bytes) == (2, 0, 100 + manifest)
    assert 0 < one.stall_s <= one.write_s


def test_what_more_ranks_of_an_earlier_attempt_left_is_deleted(tmp_path):
    for rank in (0, 1, 2):
        scratch_of(open_store(tmp_path), rank).mkdir(parents=True)
    CheckpointWriter(str(tmp_path), {}, 1, 2, None)
    assert scratch_of(open_store(tmp_path), 2).exists()
    CheckpointWriter(str(tmp_path), {}, 0, 2, None)
    assert [scratch_of(open_store(tmp_path), rank).exists() for rank in (0, 1, 2)] == [True, True, False]


def test_a_part_that_cannot_be_written_leaves_no_scratch_and_no_list(tmp_path):
    writer = CheckpointWriter(str(tmp_path), {}, 0, 1, None)

    def full(folder: str) -> None:
        Path(folder, "shard").write_bytes(b"x")

    def refuse(*_: object) -> None:
        raise UserError("the disk is full")

    writer._store = type("Full", (), {**vars(type(writer._store)), "take_dir": refuse})(str(tmp_path))
    writer.save(2, full)
    with pytest.raises(UserError, match="the disk is full"):
        writer.wait()
    assert open_store(tmp_path).list() == [] and not scratch_of(open_store(tmp_path), 0).exists()
