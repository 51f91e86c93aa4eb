"""The files of a reference, and how they are checked: all of them before they are used again, each row when it is read.

    index.json                     what the reference is of, and the checksums of the other two; with one of its own
    tensors/tensors.safetensors    hidden states of both sides, and M0's output head
    tensors/rows.crc32             CRC-32 of every row of hidden states, uint32 in native order: of x, then of x∖C

A row's checksum is taken of what was computed, before it is written. Reading a row costs its checksum anew, about 1 ms
per MB, so nothing has to be read beforehand, and what a disk spoils during a run is found as well.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from introspect_ray.errors import AlarmError, Outage, UserError, one_line
from introspect_ray.policy import discard
from introspect_ray.storage import Store
from introspect_ray.storage.digests import Digest, Written, digest_of, in_parallel
from introspect_ray.training.mapped_tensors import MappedTensors

INDEX, TENSORS, ROWS = "index.json", "tensors/tensors.safetensors", "tensors/rows.crc32"
FORMAT = 2  # 1, of version 0.3 and before, had no checksums: it is made again
Sums = NDArray[np.uint32]
_log = logging.getLogger(__name__)


class Damage(ValueError):
    """A file of a reference is not as it was written. The message says which, and what is wrong."""


def row_sums(hidden_NH: Tensor) -> Sums:
    """CRC-32 of each row, [N]. hidden_NH: contiguous, on the CPU."""
    rows = _bytes(hidden_NH).reshape(len(hidden_NH), hidden_NH.shape[1] * hidden_NH.itemsize)
    return np.fromiter((zlib.crc32(row.data) for row in rows), np.uint32, len(rows))


def write_index(
    folder: Path, about: Mapping[str, Any], sums: Mapping[str, Sums], constants: Mapping[str, Tensor]
) -> None:
    """Write checksums and index of a reference whose tensors are in `folder`. sums: by side. constants: the tensors
    that have no rows of cases, as they were computed."""
    (folder / ROWS).write_bytes(b"".join(part.tobytes() for part in sums.values()))
    header = MappedTensors.header_bytes(folder / TENSORS)
    index = {
        **about,
        "format": FORMAT,
        "files": {name: digest_of(folder / name) for name in (TENSORS, ROWS)},
        "rows": {side: len(part) for side, part in sums.items()},
        "header": {"bytes": len(header), "blake2b": _hash(header)},
        "constants": {name: _hash(_bytes(tensor).data) for name, tensor in constants.items()},
    }
    (folder / INDEX).write_text(json.dumps({"blake2b": _hash(_text(index)), "index": index}))


def read_index(content: bytes) -> dict[str, Any]:
    """The index in the bytes of its file. Raises Damage, also for one of a version without checksums."""
    try:
        found = json.loads(content)
        index: dict[str, Any] = found["index"]
        whole = found["blake2b"] == _hash(_text(index))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damage(f"its {INDEX} has no checksum, or is cut short ({one_line(error)[:80]})") from None
    if not whole or index["format"] != FORMAT:
        raise Damage(f"its {INDEX} has another checksum than was written")
    return index


def damage(store: Store, name: str) -> str | None:
    """What is wrong with the reference in folder `name`; None if all of it is as it was written. Reads all of it.

    Raises FileNotFoundError if there is none.
    """
    try:
        files = read_index(store.read_bytes(f"{name}/{INDEX}"))["files"]
    except Damage as error:
        return str(error)

    def found(file: str) -> str | None:
        content = Digest()
        try:
            store.read_into(f"{name}/{file}", content)
        except FileNotFoundError:
            return f"{file} is missing"
        return _difference(file, content.written(), files[file])

    return next(filter(None, in_parallel(found, files)), None)


def _difference(file: str, found: Written, listed: Written) -> str | None:
    if found["bytes"] != listed["bytes"]:
        return f"{file} has {found['bytes']} bytes of {listed['bytes']}"
    return None if found == listed else f"{file} has another checksum than was written"


def is_whole(store: Store, name: str) -> bool:
    """Whether a reference is there, as it was written. A damaged one is deleted. Raises UserError if it cannot be."""
    try:
        problem = damage(store, name)
    except FileNotFoundError:
        return False
    if problem is None:
        return True
    _log.warning("the reference %s is damaged (%s): it is made again", store.join(name), problem)
    local = store.local_path(name)
    if local is None:
        store.delete_prefix(name)
    else:
        try:
            discard(local)
        except OSError as error:  # a shared cache of someone else
            why = f"is damaged ({problem}) and cannot be deleted ({error.strerror})"
            raise UserError(f"the reference {local} {why}: delete it, or name another cache_dir") from None
    return False


class Layout:
    """Where the rows of each case lie in the tensors of either side: a row per position, in the order of the cases."""

    def __init__(self, case_ids: Sequence[str], positions: np.ndarray) -> None:
        """positions: int [2, cases], of M0's responses to x and to x∖C. Raises ValueError if an id occurs twice."""
        self.row = {case_id: i for i, case_id in enumerate(case_ids)}
        if len(self.row) != len(case_ids):
            raise ValueError(f"{len(case_ids) - len(self.row)} case ids occur twice")
        self.positions = positions
        self.totals = positions.sum(-1).tolist()
        self._starts = positions.cumsum(-1) - positions

    def rows(self, case_ids: Sequence[str]) -> list[Tensor]:
        """The rows of these cases, for x and for x∖C. Raises KeyError for an unknown case."""
        which = np.array([self.row[case_id] for case_id in case_ids], np.int64)
        found = []
        for starts, positions in zip(self._starts[:, which], self.positions[:, which], strict=True):
            within = np.arange(positions.sum()) - (positions.cumsum() - positions).repeat(positions)
            found.append(torch.from_numpy(starts.repeat(positions) + within))
        return found


class CheckedTensors:
    """The tensors of a reference: constants checked when it is opened, rows whenever they are read."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        """Raises Damage if anything that is read here is damaged, OSError if it is not there."""
        listed: Mapping[str, Written] = index["files"]
        size = (folder / TENSORS).stat().st_size
        if size != listed[TENSORS]["bytes"]:  # beyond its end a mapped file would end the process
            raise Damage(f"{TENSORS} has {size} bytes of {listed[TENSORS]['bytes']}")
        with (folder / TENSORS).open("rb") as file:
            if _hash(file.read(index["header"]["bytes"])) != index["header"]["blake2b"]:
                raise Damage(f"the header of {TENSORS} has another checksum than was written")
        if problem := _difference(ROWS, digest_of(folder / ROWS), listed[ROWS]):
            raise Damage(problem)
        self.file = MappedTensors(folder / TENSORS)
        for name, checksum in index["constants"].items():
            if _hash(_bytes(self.file.tensors[name]).data) != checksum:
                raise Damage(f"{name} in {TENSORS} has another checksum than was written")
        self.file.release_all()
        sums, rows = np.fromfile(folder / ROWS, np.uint32), index["rows"]
        parts = np.split(sums, np.cumsum(list(rows.values()))[:-1])
        self._sums = dict(zip(rows, parts, strict=True))

    def rows(self, side: str, rows: Tensor) -> Tensor:
        """These rows of hidden states, a copy. Raises Damage naming the first that is damaged."""
        hidden_NH = self.file.tensors[side].index_select(0, rows)
        wrong = np.flatnonzero(row_sums(hidden_NH) != self._sums[side][rows.numpy()])
        if len(wrong):
            raise Damage(
                f"row {int(rows[wrong[0]])} of {side} in {TENSORS} has another checksum than was written "
                f"({len(wrong)} of {len(rows)} rows that were read)"
            )
        return hidden_NH


def download_cache(uri: str) -> Path:
    """The folder of this machine in which a remote reference is kept."""
    return Path.home() / ".cache" / "introspect-ray" / hashlib.blake2b(uri.encode(), digest_size=8).hexdigest()


def damaged(error: Exception, folder: Path, source: str | None) -> Exception:
    """What to raise for a damaged reference. A download is deleted, and the next attempt fetches it again. One that
    lies where it was made is checked when a run starts, and made again."""
    if source:
        discard(folder)
        return Outage(f"the download of reference {source} is damaged ({error}); it is deleted, to be fetched again")
    return AlarmError(f"the reference {folder} is damaged ({error}): go on with --resume, which makes it again")


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor as a flat array, not copied if it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy()


def _hash(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _text(index: Mapping[str, Any]) -> bytes:
    return json.dumps(index, sort_keys=True).encode()
