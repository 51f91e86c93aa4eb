"""Checkpoints of a run, <output_dir>/checkpoints/step-00000004/: written by all ranks, checked before they are used.

    manifest.json   rank 0: format, step, number of ranks, and what identifies the run
    rank-0.json     one per rank, written last: size and checksum of every other file of the rank
    ...             the learner's shards, and the labels made for later steps

A checkpoint is finished once the manifest and the list of every rank exist, so that no rank waits for another. A thread
brings the files there while the next steps train: where output_dir is a folder, they are written beside their place and
moved; on S3 they are written to the node's scratch folder (storage/scratch.py) and uploaded from there. Either way they
are hashed while they are read, several at a time, and not synced to disk: what a power failure leaves has another
checksum than its list says.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.errors import Outage, UserError
from introspect_ray.storage import Store, open_store
from introspect_ray.storage.digests import Digest, Written, in_parallel
from introspect_ray.storage.scratch import scratch_root
from introspect_ray.storage.store import TEMPORARY

FOLDER = "checkpoints"
KEEP = 2
_MANIFEST = "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Refusal:
    """Why a checkpoint cannot be used. `finished`: it was whole once, so going on without it loses work."""

    folder: str
    reason: str
    finished: bool

    def __str__(self) -> str:
        return f"checkpoint {self.folder} is not used: {self.reason}"


@dataclass(frozen=True)
class Saved:
    """What one rank's part of a checkpoint cost.

    stall_s: seconds for which training stood still: the last checkpoint's end, the barrier, the copy of the state.
    write_s: from the call of `save` until the part is stored.
    """

    step: int
    rank: int
    bytes: int
    stall_s: float
    write_s: float


def step_of(name: str | None) -> int:
    """The step at which a run goes on from a checkpoint; 0 without one. Example: "step-00000004" -> 4."""
    found = _NAME.fullmatch(name or "")
    return int(found[1]) if found else 0


def newest_usable(store: Store, run: Mapping[str, Any], warn: Callable[[str], None]) -> str | None:
    """Name of the newest checkpoint in the output folder that is whole and of this run; None: start at step 0.

    run: what the checkpoint must share with the run (runs/identity.py). `warn` gets a line on every newer checkpoint
    that is refused, with its folder and the reason. Raises UserError if there are finished checkpoints but none can be
    used: to start at step 0 would throw away what was trained.
    """
    refused: list[Refusal] = []
    for name in list_names(store):
        refusal = check(store, name, run)
        if refusal is None:
            return name
        refused.append(refusal)
        warn(str(refusal))
    lost = [refusal for refusal in refused if refusal.finished]
    if lost:
        raise UserError(
            f"none of the {len(refused)} checkpoints in {store.join(FOLDER)} can be used, the newest because "
            f"{lost[0].reason}: restore it, or delete that folder to start again at step 0"
        )
    if refused:
        warn(f"no checkpoint in {store.join(FOLDER)} was ever finished: starting at step 0")
    return None


def check(store: Store, name: str, run: Mapping[str, Any]) -> Refusal | None:
    """None if the checkpoint is finished and of this run, and every file has its listed size and checksum."""
    folder, prefix = store.join(FOLDER, name), f"{FOLDER}/{name}/"
    present = {file.removeprefix(prefix) for file in store.list(prefix.rstrip("/"))}
    if not _NAME.fullmatch(name) or (_MANIFEST not in present and "rank-0.json" in present):
        return Refusal(folder, "it is not of the form this program writes", finished=True)
    if _MANIFEST not in present:
        return Refusal(folder, "it was never finished (no manifest.json)", finished=False)
    try:
        if "rank-0.json" in present:  # first: a flipped digit in the number of ranks would make it look unfinished
            first = store.read_json(prefix + "rank-0.json")
            if damage := _damage(store, prefix, _MANIFEST, first[_MANIFEST]):
                return Refusal(folder, damage, finished=True)
        manifest = store.read_json(prefix + _MANIFEST)
        lists = [f"rank-{rank}.json" for rank in range(manifest["ranks"])]
        missing = [file for file in lists if file not in present]
        if missing:
            return Refusal(folder, f"it was never finished (no {missing[0]})", finished=False)
        other = _difference(manifest, run, step_of(name))
        if other:
            return Refusal(folder, f"it is of another run: {other}", finished=True)
        files = {file: written for part in lists for file, written in store.read_json(prefix + part).items()}
        found = in_parallel(lambda listed: _damage(store, prefix, *listed), files.items())
        unlisted = [f"{file} is in no list" for file in sorted(present - files.keys() - set(lists))]
        damage = next(filter(None, [*found, *unlisted]), None)
    except (UserError, KeyError, TypeError, AttributeError) as error:  # a file that is not such a list
        damage = f"its lists cannot be read ({' '.join(str(error).split())})"
    return Refusal(folder, damage, finished=True) if damage else None


def _difference(manifest: Mapping[str, Any], run: Mapping[str, Any], step: int) -> str | None:
    """The first difference between a manifest and that of `run` at `step`; None if there is none."""
    if manifest["format"] != _FORMAT:
        return f"its format is {manifest['format']}, this program reads {_FORMAT}"
    if manifest["step"] != step:
        return f"it says step {manifest['step']}"
    theirs, ours = manifest["run"], json.loads(json.dumps(run))
    key = next((key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)), None)
    return key and f"{key} was {theirs.get(key)!r} and is now {ours.get(key)!r}"


def _damage(store: Store, prefix: str, file: str, listed: Written) -> str | None:
    content = Digest()
    try:
        store.read_into(prefix + file, content)
    except FileNotFoundError:
        return f"{file} is missing"
    found = content.written()
    if found["bytes"] != listed["bytes"]:
        return f"{file} has {found['bytes']} bytes of {listed['bytes']}"
    return None if found["blake2b"] == listed["blake2b"] else f"{file} has another checksum than was written"


def fetch(store: Store, name: str, folder: Path) -> None:
    """Download a checkpoint into `folder`, and compare what has arrived with its lists. Raises Outage if it is not the
    same: the next attempt fetches it again, or goes on from another one."""
    place = f"{FOLDER}/{name}"
    store.download_dir(place, folder)
    arrived = open_store(folder)
    for part in sorted(folder.glob("rank-*.json")):
        listed = arrived.read_json(part.name).items()
        damage = next(filter(None, in_parallel(lambda one: _damage(arrived, "", *one), listed)), None)
        if damage:
            raise Outage(f"checkpoint {store.join(place)} did not arrive as it was written: {damage}")


def list_names(store: Store) -> list[str]:
    """The folders of checkpoints, newest first. Ray Train keeps files beside them, which are left out."""
    parts = (name.split("/") for name in store.list(FOLDER))
    return sorted({part[1] for part in parts if len(part) > 2}, key=lambda name: (step_of(name), name), reverse=True)


def scratch_of(store: Store, rank: int) -> Path:
    """Where a rank writes its part of a checkpoint before it is stored: the same folder for all checkpoints of a run,
    so that what a killed process left there is not left for good. Raises UserError as scratch_root."""
    beside = store.local_path(f"{FOLDER}/{TEMPORARY}rank-{rank}")
    if beside is not None:  # the same disk: what is written there is moved, not copied
        return beside
    run = hashlib.blake2b(store.join().encode(), digest_size=8).hexdigest()
    return scratch_root() / f"introspect-ray-checkpoint-{run}-rank-{rank}"


def _clear_left(store: Store, ranks: int) -> None:
    """Delete what ranks of an earlier attempt left beside the checkpoints, if this one has fewer (`ranks`)."""
    folder = store.local_path(FOLDER)
    for left in folder.glob(f"{TEMPORARY}rank-*") if folder is not None else ():
        if int(left.name.rpartition("-")[2]) >= ranks:
            shutil.rmtree(left, ignore_errors=True)


class CheckpointWriter:
    """Writes one rank's part of a run's checkpoints; the newest KEEP finished ones stay.

    Every rank calls `save` and `settle` in the same order, with a collective in between. At most one checkpoint is
    being stored at a time; the next call raises what went wrong with it.
    """

    def __init__(self, output_dir: str, run: Mapping[str, Any], rank: int, ranks: int, resumed: str | None) -> None:
        """Raises UserError where the scratch folder of this node cannot be used."""
        self._store, self._run, self._rank, self._ranks = open_store(output_dir), run, rank, ranks
        self._scratch = scratch_of(self._store, rank)
        if rank == 0:
            _clear_left(self._store, ranks)
        self._resumed = resumed  # was checked, and may be of another number of ranks
        self._kept = [resumed] if resumed else []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[str, Future[None]] | None = None
        self.on_saved: Callable[[Saved], None] = lambda saved: None  # called in the thread, once the part is stored

    def save(self, step: int, write: Callable[[str], Future[Any] | None]) -> None:
        """Let `write` start to fill a local folder, and store the folder in a thread once it is filled.

        `write` holds a barrier of all ranks and returns a future of the filled folder (None: it is filled already).
        """
        began = time.perf_counter()
        self.wait()
        name = f"step-{step:08d}"
        if self._rank == 0:  # a refused checkpoint of the same name; no rank writes before the barrier
            self._store.delete_prefix(f"{FOLDER}/{name}")
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        filled = write(str(self._scratch))
        self.settle()  # after the barrier all ranks are past their `wait`
        if self._rank == 0:
            manifest = {"format": _FORMAT, "step": step, "ranks": self._ranks, "run": dict(self._run)}
            Path(self._scratch, _MANIFEST).write_text(json.dumps(manifest, indent=2))
        self._kept.append(name)
        stalled = time.perf_counter() - began
        self._writing = name, self._thread.submit(self._store_away, step, filled, began, stalled)

    def wait(self) -> None:
        """Until this rank's part of the last checkpoint is stored."""
        if self._writing is not None:
            self._writing[1].result()
            self._writing = None

    def settle(self) -> None:
        """Once every rank has waited: rank 0 checks that the last checkpoint is finished, and deletes older ones."""
        if self._rank or not self._kept:
            return
        last, ranks = f"{FOLDER}/{self._kept[-1]}", 0 if self._kept[-1] == self._resumed else self._ranks
        missing = [rank for rank in range(ranks) if not self._store.exists(f"{last}/rank-{rank}.json")]
        if missing:
            raise UserError(
                f"checkpoint {self._store.join(last)} lacks the part of rank {missing[0]}: output_dir must be a folder "
                "that all nodes share, or s3://"
            )
        old, self._kept = self._kept[:-KEEP], self._kept[-KEEP:]
        for name in list_names(self._store):
            if name in old or (_NAME.fullmatch(name) and step_of(name) < step_of(self._kept[0])):
                self._store.delete_prefix(f"{FOLDER}/{name}")

    def _store_away(self, step: int, filled: Future[Any] | None, began: float, stalled: float) -> None:
        place = f"{FOLDER}/step-{step:08d}"
        try:
            if filled is not None:
                filled.result()
            written = self._store.take_dir(self._scratch, place)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._store.write_json(f"{place}/rank-{self._rank}.json", written)
        size = sum(file["bytes"] for file in written.values())
        self.on_saved(Saved(step, self._rank, size, stalled, time.perf_counter() - began))
