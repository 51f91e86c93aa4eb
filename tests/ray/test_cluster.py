"""Several nodes: raylets of one machine, which share its disk, and a folder that only the driver's process sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from head import head

from introspect_ray.actors.trainer import _check_output
from introspect_ray.config import override
from introspect_ray.errors import UserError
from introspect_ray.runs.cluster import check_folders

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
REPO = Path(__file__).parents[2]

LOOK = """
import sys, time
from pathlib import Path
import ray
from introspect_ray.runs.cluster import blind_nodes, on_this_node
class Actor:
    def node(self):
        return ray.get_runtime_context().get_node_id()
ray.init(log_to_driver=False)
while len(nodes := [node["NodeID"] for node in ray.nodes() if node["Alive"]]) < 2:
    time.sleep(0.2)
seen, unseen = map(Path, sys.argv[1:])
actor = ray.remote(num_cpus=0)(Actor)
actors = [actor.options(scheduling_strategy=on_this_node()).remote() for _ in range(4)]
assert {ray.get(one.node.remote()) for one in actors} == {ray.get_runtime_context().get_node_id()}
print(len(blind_nodes(seen, nodes)), len(blind_nodes(unseen, nodes)), *seen.iterdir())
"""


def test_folders_that_the_nodes_do_not_share_are_refused(tmp_path):
    """Also, in the same script: where actors go that belong beside the driver.

    /proc/self/fd/N names a folder in the process that opened it, and nothing in Ray's workers."""
    (tmp_path / "seen").mkdir()
    (tmp_path / "unseen").mkdir()
    held = os.open(tmp_path / "unseen", os.O_RDONLY)
    unseen = f"/proc/self/fd/{held}"
    with head(tmp_path, workers=1) as (_, env):

        def run(*command: str) -> subprocess.CompletedProcess:
            return subprocess.run(
                [sys.executable, *command], cwd=REPO, env=env, capture_output=True, text=True, pass_fds=[held]
            )

        looked = run("-c", LOOK, str(tmp_path / "seen"), unseen)
        assert looked.stdout.split() == ["0", "2"], looked.stderr
        done = run("jobs/train.py", "steps=1", "task.train_cases=64", "task.test_cases=32", f"output_dir={unseen}/run")
    os.close(held)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: output_dir is {unseen}/run on this node's disk, and 1 of 2 nodes do not see")
    assert not list((tmp_path / "unseen").iterdir()) and not list((tmp_path / "seen").iterdir())


def test_nodes_to_come_will_not_see_this_ones_root(live, tmp_path):
    """One node: any folder will do, unless the run waits for more. A shared disk is never the root file system."""
    root = next(path for path in (tmp_path, Path.home(), Path("/")) if path.stat().st_dev == Path("/").stat().st_dev)
    cfg = override(live.cfg, {"output_dir": str(root / "run"), "cache_dir": None})
    check_folders(cfg, more_nodes=False)
    check_folders(override(cfg, {"output_dir": "s3://bucket/run"}), more_nodes=True)
    with pytest.raises(UserError, match=r"^output_dir is .*/run on this node's disk, and the run waits for nodes"):
        check_folders(cfg, more_nodes=True)
    for flat, key in (
        ({"cache_dir": str(root / "cache")}, "cache_dir"),
        ({"tracking.backend": "mlflow", "tracking.uri": f"sqlite:///{root}/mlflow.db"}, "tracking.uri"),
    ):
        with pytest.raises(UserError, match=rf"^{key} is "):
            check_folders(override(cfg, {"output_dir": "s3://bucket/run", **flat}), more_nodes=True)


def test_a_training_worker_on_another_disk_refuses(live, tmp_path):
    _check_output("s3://bucket/run")
    with pytest.raises(UserError, match=r"on the driver's disk, and node [\d.]+ does not see it"):
        _check_output(str(tmp_path))
