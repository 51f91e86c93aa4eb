"""A checkpoint on S3 comes to a node once, whatever number of ranks read it there."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import on_two_ranks

from introspect_ray.actors.trainer import checkpoint_folder
from introspect_ray.errors import Outage
from introspect_ray.storage import open_store
from introspect_ray.storage.checkpoints import CheckpointWriter


def read(rank: int, uri: str, nodes: tuple[int, int]) -> tuple[str, bytes, bool]:
    """(folder, content, whether it is gone afterwards) for a rank that is the first of its node or the second."""
    first = nodes.index(nodes[rank]) == rank
    with checkpoint_folder(open_store(uri), "step-00000002", nodes[rank], 0 if first else 1, 2) as folder:
        content = (folder / "shard").read_bytes()
    return str(folder), content, not folder.exists()


@pytest.mark.parametrize(("nodes", "downloads"), [((0, 0), 1), ((0, 1), 2)])
def test_once_a_node(s3_env, tmp_path, nodes, downloads):
    writer = CheckpointWriter(s3_env, {}, 0, 1, None)
    writer.save(2, lambda folder: Path(folder, "shard").write_bytes(b"weights") and None)
    writer.wait()
    (one, first, gone), (other, second, _) = on_two_ranks(read, tmp_path, s3_env, nodes)
    assert first == second == b"weights" and len({one, other}) == downloads
    assert gone


def test_a_local_one_is_read_where_it_lies(tmp_path):
    with checkpoint_folder(open_store(tmp_path), "x", 0, 0, 1) as folder:
        assert folder == tmp_path / "checkpoints" / "x"


def test_what_did_not_arrive_as_it_was_written_is_not_used(s3_env):
    writer, store = CheckpointWriter(s3_env, {}, 0, 1, None), open_store(s3_env)
    writer.save(2, lambda folder: Path(folder, "shard").write_bytes(b"weights") and None)
    writer.wait()
    store.write_bytes("checkpoints/step-00000002/shard", b"weighty")
    with (
        pytest.raises(Outage, match="did not arrive as it was written: shard has another checksum"),
        checkpoint_folder(store, "step-00000002", 0, 0, 1),
    ):
        pass
