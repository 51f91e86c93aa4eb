"""A tracker that writes to the output folder alone: metrics.jsonl, params.json and artifacts/."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from introspect_ray import patience
from introspect_ray.config import flatten
from introspect_ray.errors import Outage, UserError, one_line
from introspect_ray.storage import Store, open_store
from introspect_ray.storage.tracker import Status, Tracker, numbers

_log = logging.getLogger(__name__)


class JsonlTracker(Tracker):
    """metrics.jsonl (one row per call, with "step"), params.json and artifacts/ in the output folder.

    Locally every row is on disk at once. S3 cannot append: there the object is rewritten at a flush, at close, and
    whenever it has grown by a tenth (at least 50 rows), so that about ten times its final size is sent in all.

    A row that cannot be written, because the disk is full or the store is away, is a warning and waits in memory for
    the next row or flush: no row ends a run, and a file never holds a part of one.
    """

    NAME = "metrics.jsonl"

    def __init__(self, output_dir: str, *, metrics_only: bool = False, artifacts: bool = True) -> None:
        """Raises UserError or OSError if the file cannot be opened: nothing has begun then."""
        self._store = open_store(output_dir)
        self._params, self._artifacts = not metrics_only, artifacts and not metrics_only
        self._waiting: list[bytes] = []
        self._refused = False
        path = self._store.local_path(self.NAME)
        self._rows: _RowFile | _RowObject = _RowObject(self._store) if path is None else _RowFile(path)
        self._due = self._rows.least()  # rows that wait until they are written

    def log_params(self, params: Mapping[str, Any]) -> None:
        if self._params:
            self._store.write_json("params.json", flatten(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        row = json.dumps({"step": step, **numbers(metrics, step)}, ensure_ascii=False) + "\n"
        self._waiting.append(row.encode())
        if len(self._waiting) >= self._due:
            with patience.at_most(0.0):  # the next rows try again
                self.flush()

    def log_file(self, name: str, folder: str = "") -> None:
        if not self._artifacts:
            return
        target = "/".join(filter(None, ["artifacts", folder.strip("/"), Path(name).name]))
        source, local = self._store.local_path(name), self._store.local_path(target)
        if source is not None and local is not None:  # copied without reading the file into memory
            local.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, local)
        else:
            self._store.write_bytes(target, self._store.read_bytes(name))

    def flush(self) -> None:
        if not self._waiting:
            return
        try:
            self._rows.append(self._waiting)
        except (OSError, UserError, Outage) as error:
            if not self._refused:
                where = self._store.join(self.NAME)
                _log.warning("%s cannot be written (%s): its rows wait, and the run goes on", where, one_line(error))
            self._refused = True
            self._due = self._rows.least(len(self._waiting))
            return
        self._waiting, self._refused = [], False
        self._due = self._rows.least()

    def close(self, status: Status = "FINISHED") -> None:
        self.flush()
        if self._waiting:
            _log.warning("%s lacks the last %d rows", self._store.join(self.NAME), len(self._waiting))
        self._rows.close()


class _RowFile:
    """A local file of rows, appended to in one write each time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._mend()

    def _mend(self) -> None:
        """End the file with a whole row: a process that is killed, or a disk that is full, may leave a part of one."""
        content = self._path.read_bytes()
        tail = content[content.rfind(b"\n") + 1 :]
        if not tail:
            return
        if is_row(tail):
            os.write(self._file, b"\n")
            return
        os.ftruncate(self._file, len(content) - len(tail))
        _log.warning("%s ended with a part of a row (%d bytes), which is left out", self._path, len(tail))

    def least(self, refused: int = 0) -> int:
        """From how many rows on it is worth a write. refused: rows that could not be written just now."""
        return 1

    def append(self, rows: list[bytes]) -> None:
        """All rows or none. Raises OSError."""
        data, before = b"".join(rows), os.fstat(self._file).st_size
        try:
            if os.write(self._file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, before)
            raise

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class _RowObject:
    """An object of rows in a store that cannot append: it is written as a whole."""

    def __init__(self, store: Store) -> None:
        self._store = store
        name = JsonlTracker.NAME
        self._sent = store.read_bytes(name).splitlines(keepends=True) if store.exists(name) else []

    def least(self, refused: int = 0) -> int:
        """As above. A store that is away may take minutes to say so: then the next attempt waits for as many again."""
        return max(50, len(self._sent) // 10, 2 * refused)

    def append(self, rows: list[bytes]) -> None:
        """Raises OSError or UserError; then none of the rows is there."""
        self._store.write_bytes(JsonlTracker.NAME, b"".join([*self._sent, *rows]))
        self._sent += rows

    def close(self) -> None:
        return


def is_row(line: bytes) -> bool:
    """Whether a line is a whole row."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def read_rows(store: Store) -> tuple[list[dict[str, Any]], int]:
    """The rows of metrics.jsonl in the order in which they came, and how many of its lines are none.

    A file that is not there has no rows.
    """
    if not store.exists(JsonlTracker.NAME):
        return [], 0
    lines = store.read_bytes(JsonlTracker.NAME).splitlines()
    rows = [json.loads(line) for line in lines if is_row(line)]
    return rows, len(lines) - len(rows)
