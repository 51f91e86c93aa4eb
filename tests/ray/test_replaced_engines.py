"""An engine whose restart fails in its __init__, which Ray gives up, and who shares a GPU with whom."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import EngineSpec, Serving
from introspect_ray.config import override
from introspect_ray.policy import BUNDLED

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
REPO = Path(__file__).parents[2]


@pytest.fixture
def broken(live, tmp_path):
    """A pool of one engine that Ray has given up, what it answered before, and a function that mends what broke it."""
    folder = shutil.copytree(BUNDLED["organism"], tmp_path / "policy")
    cfg = override(live.cfg, {"rollout.engine": "transformers", "rollout.num_cpus": 0})
    spec = EngineSpec(str(folder), live.setup.prepared.max_model_len, "full", 1, 0)
    pool = RolloutPool(cfg, spec, [live.setup.train])
    pool.wait()
    ids = live.setup.prepared.train.case_ids[:8]
    before = pool.label_now(ids, Serving())
    file = folder / "config.json"
    right, (actor,) = file.read_text(), pool.actors
    file.write_text(json.dumps({**json.loads(right), "hidden_act": "unknown"}))  # a KeyError, as a broken node has one
    os.kill(ray.get(actor.__ray_call__.remote(lambda worker: os.getpid())), signal.SIGKILL)
    with pytest.raises(ActorDiedError):
        while True:
            try:
                ray.get(actor.ping.remote())
            except ActorUnavailableError:
                time.sleep(0.2)
    yield pool, ids, before, lambda: file.write_text(right)
    pool.close()


def test_recovery_starts_a_new_actor_for_an_engine_that_ray_gave_up(broken):
    pool, ids, before, mend = broken
    with pytest.raises(ActorDiedError):
        pool.revive()  # the new one cannot start either
    mend()
    assert pool.revive() == ["rollout actor 0 could not be started again: a new one was"]
    assert pool.label_now(ids, Serving()) == before


def test_an_evaluation_goes_on_with_a_new_actor(broken, capfd):
    pool, ids, before, mend = broken
    mend()
    assert pool.label_now(ids, Serving()) == before
    assert "rollout actor 0 failed at: label 8 cases" in capfd.readouterr().err


PAIRS = """
import tempfile
import ray, ray.train
from ray.train.torch import TorchConfig
from introspect_ray.actors.engines import place
from introspect_ray.actors.trainer import check_shared_gpu
from introspect_ray.config import load_config
from introspect_ray.runs.elastic import scaling
from introspect_ray.runs.lent_group import GroupTrainer
from introspect_ray.runs.setup import make_group

class Engine:
    def place(self):
        return place()

def worker(config):
    check_shared_gpu(place(), config["engines"], ray.train.get_context().get_world_rank())
    return place()[1]

ray.init(num_cpus=8, num_gpus=4, include_dashboard=False, log_to_driver=False)
cfg = load_config(None, {"train.use_gpu": True, "train.num_workers": 3, "rollout.num_actors": 3,
                         "rollout.num_gpus": 0.6, "rollout.weight_transfer": "ipc", "batch_size": 8})
group = make_group(cfg)
actor = ray.remote(num_cpus=1, num_gpus=cfg.rollout.num_gpus)(Engine)
engines = [actor.options(scheduling_strategy=where).remote() for where in group.engine_places()]
places = ray.get([engine.place.remote() for engine in engines])
with tempfile.TemporaryDirectory() as folder:
    GroupTrainer(worker, train_loop_config={"engines": places}, torch_config=TorchConfig(backend="gloo"),
                 scaling_config=scaling(cfg), run_config=ray.train.RunConfig(name="pairs", storage_path=folder),
                 group=group.group).fit()
print(*sorted(gpus for _, (gpus,) in places))
"""


def test_each_engine_shares_the_gpu_of_one_trainer():
    """Four GPUs by name, of which this machine need have none; a worker elsewhere would raise. In groups of their own,
    one engine of 0.6 and four trainers of 0.4 were put on the GPUs 0, 1, 1 and 2."""
    done = subprocess.run([sys.executable, "-c", PAIRS], cwd=REPO, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(set(done.stdout.split())) == 3
