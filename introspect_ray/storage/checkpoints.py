"""Checkpoints of a run, <output_dir>/checkpoints/step-00000004/: written by all ranks, checked before they are used.

    manifest.json   rank 0: format, step, number of ranks, and what identifies the run
    rank-0.json     one a rank, its last file: size and checksum of everything else the rank wrote
    ...             the learner's shards, and what the loop keeps beside them

A checkpoint is finished once the manifest and the list of every rank are there, so no rank waits for another,
and files are hashed and copied in a thread while the next steps train.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.storage import Store, open_store

FOLDER = "checkpoints"
KEEP = 2
_MANIFEST = "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Refusal:
    """Why a checkpoint cannot be used. `finished`: it once was whole, so work would be lost without it."""

    folder: str
    reason: str
    finished: bool

    def __str__(self) -> str:
        return f"checkpoint {self.folder} is not used: {self.reason}"


def step_of(name: str | None) -> int:
    """The step a checkpoint goes on at; 0 without one. Example: "step-00000004" -> 4."""
    found = _NAME.fullmatch(name or "")
    return int(found[1]) if found else 0


def newest_usable(store: Store, run: Mapping[str, Any], warn: Callable[[str], None]) -> str | None:
    """Name of the newest checkpoint in the output folder that is whole and of this run; None: start at step 0.

    `run`: what must be equal for going on to be right (preflight.run_identity). Every newer one that is refused is
    told to `warn`, with its folder and the reason. Raises UserError where there are finished checkpoints but none
    can be used: starting at 0 would throw away what was reached.
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
    """None if the checkpoint is finished, of this run, and every file has the size and checksum of its list."""
    folder, prefix = store.join(FOLDER, name), f"{FOLDER}/{name}/"
    present = {file.removeprefix(prefix) for file in store.list(prefix.rstrip("/"))}
    if not _NAME.fullmatch(name) or (_MANIFEST not in present and "rank-0.json" in present):
        return Refusal(folder, "it is not of the form this program writes", finished=True)
    if _MANIFEST not in present:
        return Refusal(folder, "it was never finished (no manifest.json)", finished=False)
    try:
        manifest = store.read_json(prefix + _MANIFEST)
        lists = [f"rank-{rank}.json" for rank in range(manifest["ranks"])]
        missing = [file for file in lists if file not in present]
        if missing:
            return Refusal(folder, f"it was never finished (no {missing[0]})", finished=False)
        other = _difference(manifest, run, step_of(name))
        if other:
            return Refusal(folder, f"it is of another run: {other}", finished=True)
        files = {file: entry for listed in lists for file, entry in store.read_json(prefix + listed).items()}
        damage = next(filter(None, (_damage(store, prefix, file, entry) for file, entry in files.items())), None)
    except (UserError, KeyError, TypeError, AttributeError) as error:  # a list that is no list
        damage = f"its lists cannot be read ({' '.join(str(error).split())})"
    return Refusal(folder, damage, finished=True) if damage else None


def _difference(manifest: Mapping[str, Any], run: Mapping[str, Any], step: int) -> str | None:
    """The first thing in which a manifest is not that of `run` at `step`."""
    if manifest["format"] != _FORMAT:
        return f"its format is {manifest['format']}, this program reads {_FORMAT}"
    if manifest["step"] != step:
        return f"it says step {manifest['step']}"
    theirs, ours = manifest["run"], json.loads(json.dumps(run))
    key = next((key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)), None)
    return key and f"{key} was {theirs.get(key)!r} and is now {ours.get(key)!r}"


def _damage(store: Store, prefix: str, file: str, entry: Mapping[str, Any]) -> str | None:
    try:
        size, digest = _fingerprint(store, prefix + file)
    except FileNotFoundError:
        return f"{file} is missing"
    if size != entry["bytes"]:
        return f"{file} has {size} bytes of {entry['bytes']}"
    return None if digest == entry["blake2b"] else f"{file} has another checksum than was written"


class _Fingerprint:
    """Size and checksum of what is written to it."""

    def __init__(self) -> None:
        self.size, self._digest = 0, hashlib.blake2b(digest_size=16)

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self._digest.update(data)


def _fingerprint(store: Store, name: str) -> tuple[int, str]:
    """(bytes, blake2b)."""
    seen = _Fingerprint()
    store.read_into(name, seen)
    return seen.size, seen._digest.hexdigest()


def list_names(store: Store) -> list[str]:
    """Folders of checkpoints, newest first; what Ray keeps beside them are files."""
    parts = (name.split("/") for name in store.list(FOLDER))
    return sorted({part[1] for part in parts if len(part) > 2}, key=lambda name: (step_of(name), name), reverse=True)


class CheckpointWriter:
    """Writes one rank's part of a run's checkpoints; the newest KEEP finished ones stay.

    `save` and `settle` are called by every rank in the same order, with a collective in between. At most one
    checkpoint is on its way; what went wrong with it is raised by the next call.
    """

    def __init__(self, output_dir: str, run: Mapping[str, Any], rank: int, ranks: int, resumed: str | None) -> None:
        self._store, self._run, self._rank, self._ranks = open_store(output_dir), run, rank, ranks
        self._kept = [resumed] if resumed else []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[str, Future] | None = None

    def save(self, step: int, write: Callable[[str], Future | None]) -> None:
        """Let `write` (with a barrier of all ranks) start to fill a local folder, and start to store it.

        Returns before it is filled: the future that `write` returns says when it is (None: at once).
        """
        self.wait()
        name = f"step-{step:08d}"
        if self._rank == 0:  # one that was refused; nobody writes before the collective
            self._store.delete_prefix(f"{FOLDER}/{name}")
        scratch = tempfile.TemporaryDirectory(prefix="introspect-ray-checkpoint-")
        filled = write(scratch.name)
        self.settle()  # all ranks are past their wait
        if self._rank == 0:
            manifest = {"format": _FORMAT, "step": step, "ranks": self._ranks, "run": dict(self._run)}
            Path(scratch.name, _MANIFEST).write_text(json.dumps(manifest, indent=2))
        self._kept.append(name)
        self._writing = name, self._thread.submit(self._store_away, name, scratch, filled)

    def wait(self) -> None:
        """Until this rank's part of the last checkpoint is stored."""
        if self._writing is not None:
            self._writing[1].result()
            self._writing = None

    def settle(self) -> None:
        """Once every rank has waited: rank 0 checks that the last one is finished, and deletes what is older."""
        if self._rank or not self._kept:
            return
        last = f"{FOLDER}/{self._kept[-1]}"
        missing = [rank for rank in range(self._ranks) if not self._store.exists(f"{last}/rank-{rank}.json")]
        if missing:
            raise UserError(
                f"checkpoint {self._store.join(last)} lacks the part of rank {missing[0]}: output_dir must be a folder "
                "that all nodes share, or s3://"
            )
        old, self._kept = self._kept[:-KEEP], self._kept[-KEEP:]
        for name in list_names(self._store):
            if name in old or (_NAME.fullmatch(name) and step_of(name) < step_of(self._kept[0])):
                self._store.delete_prefix(f"{FOLDER}/{name}")

    def _store_away(self, name: str, scratch: tempfile.TemporaryDirectory[str], filled: Future | None) -> None:
        with scratch as folder:
            if filled is not None:
                filled.result()
            written, entries = open_store(folder), {}
            for file in written.list():
                size, digest = _fingerprint(written, file)
                entries[file] = {"bytes": size, "blake2b": digest}
            self._store.upload_dir(folder, f"{FOLDER}/{name}")
        self._store.write_json(f"{FOLDER}/{name}/rank-{self._rank}.json", entries)
