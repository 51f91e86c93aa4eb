"""A checkpoint on S3 comes to a node once, whatever number of ranks read it there."""

from __future__ import annotations

import pytest
from ranks import on_two_ranks

from introspect_ray.actors.trainer import checkpoint_folder
from introspect_ray.storage import open_store


def read(rank: int, uri: str, nodes: tuple[int, int]) -> tuple[str, bytes, bool]:
    """(folder, content, whether it is gone afterwards) for a rank that is the first of its node or the second."""
    first = nodes.index(nodes[rank]) == rank
    with checkpoint_folder(open_store(uri), "checkpoints/step-00000002", nodes[rank], 0 if first else 1, 2) as folder:
        content = (folder / "shard").read_bytes()
    return str(folder), content, not folder.exists()


@pytest.mark.parametrize(("nodes", "downloads"), [((0, 0), 1), ((0, 1), 2)])
def test_once_a_node(s3_env, tmp_path, nodes, downloads):
    open_store(s3_env).write_bytes("checkpoints/step-00000002/shard", b"weights")
    (one, first, gone), (other, second, _) = on_two_ranks(read, tmp_path, s3_env, nodes)
    assert first == second == b"weights" and len({one, other}) == downloads
    assert gone


def test_a_local_one_is_read_where_it_lies(tmp_path):
    with checkpoint_folder(open_store(tmp_path), "checkpoints/x", 0, 0, 1) as folder:
        assert folder == tmp_path / "checkpoints" / "x"
