"""Files of a run, by URI: local folders and s3:// prefixes behind one small interface.

A store is opened on a URI and then takes names relative to it ("labels/part.parquet"). Writes are
atomic: a temporary file and a rename locally, a put on S3. A store holds nothing but its URI, so it can be pickled
into another process.
"""

from __future__ import annotations

from pathlib import Path

from introspect_ray.errors import UserError
from introspect_ray.storage.local import LocalStore
from introspect_ray.storage.store import Store

__all__ = ["LocalStore", "Store", "check_writable", "is_remote", "open_store"]


def is_remote(uri: str | Path) -> bool:
    """Whether `uri` is an s3:// URI. Raises UserError for any other scheme than s3 and file."""
    scheme, sep, _ = str(uri).partition("://")
    if not sep or scheme == "file":
        return False
    if scheme != "s3":
        raise UserError(
            f"storage {str(uri)!r}: scheme {scheme!r} is not supported, use a local path or s3://bucket/prefix"
        )
    return True


def open_store(uri: str | Path) -> Store:
    """A store on a local folder (need not exist) or an s3:// prefix. Opening does no I/O. Raises UserError."""
    if is_remote(uri):
        from introspect_ray.storage.s3 import S3Store

        return S3Store(str(uri).rstrip("/"))
    return LocalStore(str(Path(str(uri).removeprefix("file://")).expanduser().absolute()))


def check_writable(uri: str | Path) -> None:
    """Raise UserError with the remedy if `uri` cannot be written to."""
    open_store(uri).check_writable()
