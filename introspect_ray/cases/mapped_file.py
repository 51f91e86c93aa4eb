"""Arrow batches in a mapped file without a name: they lie on disk, not in memory, and end with the process."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from introspect_ray.errors import UserError

RELEASE_EVERY = 64  # batches opened before the pages of the mapped file are released


def mapped_batches(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, what: str, folder: str | Path | None
) -> tuple[list[pa.RecordBatch], mmap.mmap]:
    """Write `batches` to a file in `folder` as they come, and map them from there.

    what: names them in an error. folder: None is the user's cache. The file is unlinked once it is mapped. Raises
    UserError if the folder cannot be written to.
    """
    place = Path(folder) if folder else scratch()
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix="cases-", suffix=".arrow") as file:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(
            f"the {what} cannot be written to {place} ({error.strerror or error}): make room there, "
            "or name a folder that has some with TMPDIR and HOME"
        ) from None
    reader = pa.ipc.open_file(pa.py_buffer(mapped))
    found = []
    for number in range(reader.num_record_batches):
        found.append(reader.get_batch(number))
        if number % RELEASE_EVERY == 0:
            mapped.madvise(mmap.MADV_DONTNEED)
    return found, mapped


def scratch() -> Path:
    """The user's cache folder, or the system's temporary folder if the home cannot be written to."""
    try:
        cache = Path.home() / ".cache" / "introspect-ray"
        cache.mkdir(parents=True, exist_ok=True)
        return cache if os.access(cache, os.W_OK) else Path(tempfile.gettempdir())
    except (OSError, RuntimeError):
        return Path(tempfile.gettempdir())
