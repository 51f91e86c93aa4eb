"""Tables as Parquet files that carry a checksum of all their bytes, so that no damage is read as data.

Parquet's own page checksums cover neither headers nor footer: a flipped bit there crashes a reader or changes what a
column says. So the footer's metadata also holds blake2b (16 bytes) of the whole file, taken with zeros in its own
place; any reader of Parquet ignores it. Files of earlier versions, and of other programs, have none: of them the page
checksums are checked, if there are any, and that all values are well-formed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from introspect_ray.errors import one_line

_CHECKSUM, _CHECKED = "introspect-ray blake2b", "introspect-ray checked"  # two keys: a flipped bit spoils but one
_LENGTH = 32  # hex digits
_ZEROS = b"0" * _LENGTH
_VALUE = b"\x18%c" % _LENGTH  # in the footer (Thrift, compact): a text of that length follows
_TAIL = 1 << 20  # bytes in which the metadata of a footer is looked for
_PIECE = 1 << 22


def to_bytes(table: pa.Table, one_group: bool = False) -> bytes:
    """The file of a table. Equal tables give equal bytes (of one version of pyarrow). one_group: all rows in one row
    group, as they are of part files."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table, row_group_size=max(len(table), 1) if one_group else None)
        writer.add_key_value_metadata({_CHECKED: "1", _CHECKSUM: _ZEROS.decode()})
    data = bytearray(sink.getvalue())
    place = _place(data)
    if place is None:
        raise RuntimeError(f"pyarrow {pa.__version__} writes the metadata of a Parquet file in another way")
    data[place : place + _LENGTH] = hashlib.blake2b(data, digest_size=_LENGTH // 2).hexdigest().encode()
    return bytes(data)


def from_bytes(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a file; all columns, or `columns` only. Raises ValueError, in one line, for a file that is damaged,
    cut short, or no Parquet file, and for one that lacks a column."""
    place = _place(data)
    if place is None and (_CHECKED.encode() in data or _CHECKSUM.encode() in data):
        raise ValueError("its checksum is damaged")
    if place is not None and _digest(io.BytesIO(data), place) != data[place : place + _LENGTH]:
        raise ValueError(f"the checksum of its {len(data)} bytes is not the one it was written with")
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
            if missing:
                raise ValueError(f"it has no column {missing[0]!r}")
            table = file.read(columns)
        if place is None:
            table.validate(full=True)
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError, MemoryError) as error:
        raise ValueError(one_line(error)) from None
    kept = {k: v for k, v in (table.schema.metadata or {}).items() if k.decode() not in (_CHECKED, _CHECKSUM)}
    return table.replace_schema_metadata(kept or None)


def check_file(path: Path) -> None:
    """Raise ValueError if a local file carries a checksum and has another one; it is not read into memory."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, 2) - _TAIL)
        file.seek(start)
        tail = file.read()
        place = _place(tail)
        if place is None and (_CHECKED.encode() in tail or _CHECKSUM.encode() in tail):
            raise ValueError("its checksum is damaged")
        if place is not None and _digest(file, start + place) != tail[place : place + _LENGTH]:
            raise ValueError(f"the checksum of its {start + len(tail)} bytes is not the one it was written with")


def _place(data: bytes | bytearray) -> int | None:
    """Where the hex digits of the checksum are; None if there are none."""
    at = data.rfind(_CHECKSUM.encode() + _VALUE)
    return None if at < 0 else at + len(_CHECKSUM) + len(_VALUE)


def _digest(file: BinaryIO, place: int) -> bytes:
    """The checksum of a file that has its own one at `place`, as hex digits."""
    digest, left = hashlib.blake2b(digest_size=_LENGTH // 2), place
    file.seek(0)
    while left:
        piece = file.read(min(left, _PIECE))
        digest.update(piece)
        left -= len(piece)
    digest.update(_ZEROS)
    file.seek(place + _LENGTH)
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest().encode()
