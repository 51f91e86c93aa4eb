"""A verified weight sync over what a plain loop does with the same parts, in seconds: SmolLM2-135M, one vLLM engine.

    python -m benchmarks.sync [--small] [--repeats N]

A sync begins with a learner after its step. Ours ends when the engine serves the weights and its receipt is verified:
the fingerprints of every group, and the probe against the learner's own forward. The plain loop puts the model's state
dict into Ray's object store, and the engine's actor calls vLLM's reload_weights on it and empties its prefix cache;
nothing is checked. It stores tensors or, which Ray copies once, the arrays under them: the faster one counts. At the
end both engines must serve the learner's logprobs. The weights are random, have exactly that architecture, and change
between syncs. Of all the fastest of several counts.

`pause` is the time in which the engine answers nothing, over a sync: the longest gap between the answers to small
requests sent one after the other while a sync goes on, less the usual gap. `adapter` is a sync of a LoRA adapter (rank
32) over a full one. `same_loader` is the plain loop with our engine's way to load. `parts` are the seconds of one sync
taken apart; in a real sync the learner's probe and fingerprint overlap with the engine's work.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
import torch

from benchmarks import sync_sides as sides
from benchmarks.common import parser, report, run_main
from introspect_ray.actors.pool import RolloutPool
from introspect_ray.actors.rollout import EngineSpec
from introspect_ray.actors.weight_sync import Expected, WeightSyncError, pack, probe_tolerance, verify
from introspect_ray.actors.weight_transfer import ObjectStoreTransfer
from introspect_ray.config import RunConfig, load_config
from introspect_ray.engines.fingerprint import fingerprints
from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.records import Delivery
from introspect_ray.runs.cluster import connect
from introspect_ray.training.learner import Learner

NAME, GOAL, PAUSE_GOAL, ADAPTER_GOAL = "sync", "<= 1", "<= 0.5", "<= 0.2"


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


class Verified:
    """Our side: a new engine, and syncs of a learner to it."""

    def __init__(self, cfg: RunConfig, folder: str) -> None:
        self.cfg, self.version = cfg, 0
        self.pool = RolloutPool(cfg, EngineSpec(folder, 256, cfg.method, sides.RANK, 0), [])
        self.pool.wait()
        self.transfer = ObjectStoreTransfer(cfg.method, self.pool, 0, probe_tolerance(cfg))

    def sync(self, learner: Learner) -> None:
        """Raises WeightSyncError where the engine does not serve the learner's weights."""
        self.version += 1
        sent = self.transfer.send(learner, self.version, sides.PROBES.at(self.version))
        verify(sent.expected, ray.get(sent.receipts))

    def taken_apart(self, learner: Learner) -> dict[str, float]:
        """Seconds of each part of a sync, in turn. engine_*: by the engine itself; "message": the call around it."""
        self.version += 1
        probe, adapter = sides.PROBES.at(self.version), self.cfg.method == "lora"
        gathering, tensors = timed(lambda: learner.weights(copy=False))
        config = learner.adapter_config() if adapter else None
        update = WeightUpdate(self.version, "adapter" if adapter else "full", tensors, probe, config)
        packing, packed = timed(lambda: pack(update))
        putting, stored = timed(lambda: ray.put(packed))
        loading, (receipt,) = timed(lambda: ray.get(self.pool.load_weights(stored)))
        marking, marks = timed(lambda: fingerprints(update.tensors))
        probing, expected = timed(lambda: learner.probe(probe))
        verify(Expected(self.version, marks, expected, probe_tolerance(self.cfg)), [receipt])
        engine = {f"engine_{part}": value for part, value in receipt.seconds.items()}
        own = {"gather": gathering, "pack": packing, "put": putting, "trainer_fingerprint": marking}
        own |= {"trainer_probe": probing, "message": loading - sum(receipt.seconds.values())}
        return {**own, **engine}

    def pause(self, learner: Learner) -> float:
        """Seconds of one sync in which the engine answers nothing."""
        answered: list[float] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                ray.get(self.pool.actors[0].engine.remote("generate", [(5, 6, 7)], 1))
                answered.append(time.perf_counter())

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            while len(answered) < 10:
                time.sleep(0.01)
            before = len(answered)
            self.sync(learner)
        finally:
            done.set()
            asking.join()
        gaps = [after - earlier for earlier, after in itertools.pairwise(answered)]
        return max(gaps[before - 1 :]) - statistics.median(gaps[: before - 1])


class Plain:
    """A plain loop's side: a new engine, and loads of a learner's state dict that nobody checks."""

    def __init__(self, cfg: RunConfig, folder: str) -> None:
        self.cfg = cfg
        self.pool = RolloutPool(cfg, EngineSpec(folder, 256, cfg.method, sides.RANK, 0), [])
        self.pool.wait()

    def sync(self, learner: Learner, how: str, load: Callable[..., None] = sides.load_plain) -> None:
        ray.get(self.pool.actors[0].__ray_call__.remote(load, sides.put_plain(learner, how)))

    def check(self, learner: Learner) -> None:
        """Exits where what is served is not what was loaded: such a loop would be no peer."""
        probe, tolerance = sides.PROBES.at(0), probe_tolerance(self.cfg)
        served = ray.get(self.pool.actors[0].__ray_call__.remote(sides.probe_of, probe))
        try:
            verify(Expected(0, {}, learner.probe(probe), tolerance), [Delivery(0, {}, served, {}, 0)])
        except WeightSyncError as error:
            sys.exit(f"{NAME}: the plain loop: {error}")


def fastest(name: str, learner: Learner, repeats: int, work: Callable[[], None]) -> float:
    """Seconds of the fastest of several syncs, each of another version."""
    seconds = []
    for _ in range(repeats):
        sides.move(learner)
        seconds.append(timed(work)[0])
    print(f"{name}: {', '.join(f'{s:.3f}' for s in seconds)} s", flush=True)
    return min(seconds)


def measure_verified(cfg: RunConfig, folder: str, repeats: int) -> tuple[float, float, dict[str, float], Learner]:
    """(seconds of a sync, of its pause, of its parts, the learner)."""
    learner, ours = sides.make_learner(folder, cfg.method), Verified(cfg, folder)
    ours.sync(learner)  # vLLM's first load sets up what later ones use
    seconds = fastest(cfg.method, learner, repeats, lambda: ours.sync(learner))
    pauses = []
    for _ in range(repeats):
        sides.move(learner)
        pauses.append(ours.pause(learner))
    print(f"{cfg.method} pauses: {', '.join(f'{s:.3f}' for s in pauses)} s", flush=True)
    rows = []
    for _ in range(repeats):
        sides.move(learner)
        rows.append(ours.taken_apart(learner))
    ours.pool.close()
    return seconds, min(pauses), {part: min(row[part] for row in rows) for part in rows[0]}, learner


def measure_plain(cfg: RunConfig, folder: str, learner: Learner, repeats: int) -> dict[str, float]:
    """Seconds of the plain loops, by what is stored, and of the one with our load."""
    plain = Plain(cfg, folder)
    plain.sync(learner, "arrays")
    found = {
        how: fastest(f"plain, {how}", learner, repeats, lambda how=how: plain.sync(learner, how)) for how in sides.PLAIN
    }
    plain.check(learner)
    plain.pool.close()
    plain = Plain(cfg, folder)  # vLLM's reload and ours keep the packed weights in different ways
    plain.sync(learner, "arrays", sides.load_unverified)
    work = lambda: plain.sync(learner, "arrays", sides.load_unverified)  # noqa: E731
    found["same_loader"] = fastest("plain, our load", learner, repeats, work)
    plain.check(learner)
    plain.pool.close()
    return found


def main() -> None:
    arguments = parser(__doc__)  # --small: 2 of the 30 layers
    arguments.add_argument("--repeats", type=int, default=6)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sides.make_policy(folder, 2 if args.small else 30)
        flat = {"lora_rank": sides.RANK, "output_dir": folder}
        full, lora = (load_config(None, {"method": method, **flat}) for method in ("full", "lora"))
        connect(full)
        full_s, pause_s, parts, learner = measure_verified(full, folder, args.repeats)
        plain = measure_plain(full, folder, learner, args.repeats)
        size = sum(t.numel() * t.element_size() for t in learner.weights(copy=False).values())
        adapter_s, adapter_pause_s, adapter_parts, adapter = measure_verified(lora, folder, args.repeats)
    same_loader_s = plain.pop("same_loader")
    report(
        NAME,
        full_s / min(plain.values()),
        GOAL,
        also={"pause": (pause_s / full_s, PAUSE_GOAL), "adapter": (adapter_s / full_s, ADAPTER_GOAL)},
        ratio_same_loader=full_s / same_loader_s,
        seconds={"verified": full_s, **{f"plain {how}": s for how, s in plain.items()}, "same loader": same_loader_s},
        pause_s=pause_s,
        adapter_s=adapter_s,
        adapter_pause_s=adapter_pause_s,
        bytes=size,
        adapter_bytes=sum(t.numel() * t.element_size() for t in adapter.weights(copy=False).values()),
        parts=parts,
        adapter_parts=adapter_parts,
    )


if __name__ == "__main__":
    run_main(main)
