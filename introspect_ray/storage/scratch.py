"""Where large temporary files go: checkpoints on their way to S3, downloads of checkpoints and policies.

The environment variable INTROSPECT_RAY_SCRATCH names a folder on each node, best on its local NVMe: an 8B checkpoint
has 98 GB, for which the root disk of a cloud node (125 MB/s) takes 13 minutes. Without it the system's temporary folder
is used. It is a variable of the node and no config key, since nodes of different types mount their disks elsewhere.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from introspect_ray.errors import UserError

SCRATCH = "INTROSPECT_RAY_SCRATCH"


def scratch_root() -> Path:
    """The folder for large temporary files on this node. Raises UserError if the named one cannot be used."""
    named = os.environ.get(SCRATCH)
    if not named:
        return Path(tempfile.gettempdir())
    root = Path(named).expanduser()
    if not root.is_dir() or not os.access(root, os.W_OK | os.X_OK):
        raise UserError(
            f"{SCRATCH}={named} is no folder on node {os.uname().nodename} that this user may write to: mount the disk "
            f"there on every node, or leave the variable out (then {tempfile.gettempdir()} is used)"
        )
    return root


@contextmanager
def scratch_folder(purpose: str) -> Iterator[str]:
    """A new folder below `scratch_root`, with `purpose` in its name, which is deleted with all its files at the end."""
    with tempfile.TemporaryDirectory(prefix=f"introspect-ray-{purpose}-", dir=scratch_root()) as folder:
        yield folder
