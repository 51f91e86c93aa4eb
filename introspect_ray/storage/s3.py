"""A store on S3 or any S3-compatible service, addressed by s3://bucket/prefix.

boto3 rather than Arrow's S3 file system: boto3 names the server's refusal, follows a bucket to its region, and aborts a
failed multipart upload, where closing a half-written Arrow stream would publish the half. Credentials, region and
AWS_ENDPOINT_URL come from the environment or the profile, as usual.

Requests that fail for a while (no connection, a broken one, 5xx, throttling) are repeated by boto3 a few times and then
by `patiently`. All of them may be: a repeated put writes the same bytes, and a read goes on at the part that it lacks.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from introspect_ray.errors import Outage, UserError
from introspect_ray.patience import BEFORE_A_RUN_S, patience_s, patiently
from introspect_ray.storage.digests import PARALLEL_FILES, PIECE, HashedReader, Written, in_order, in_parallel
from introspect_ray.storage.local import LocalStore, replacing
from introspect_ray.storage.s3_errors import PASSING, explained
from introspect_ray.storage.store import Sink, Store, check_name

_DELETE_BATCH = 1000  # S3's limit on one DeleteObjects request
_MOST_PARTS = 10_000  # S3's limit on the parts of one object
_PART = 8 << 20  # bytes per part, as boto3 cuts it
_PARTS_AT_ONCE = 4  # of one file that is read
# Of boto3 per request: before a run an answer is due soon; a transfer of many parts begins anew where one part fails.
_CHECK_TRIES, _TRIES, _TRANSFER_TRIES = 1, 3, 8
Made = TypeVar("Made")


@dataclass(frozen=True)
class S3Store(Store):
    """An s3:// prefix. A put is atomic, so readers see whole objects only."""

    uri: str

    @property
    def bucket(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def root(self) -> str:
        """Prefix of all keys, "" or ending in a slash."""
        path = self.uri.removeprefix("s3://").partition("/")[2].strip("/")
        return f"{path}/" if path else ""

    def join(self, *parts: str) -> str:
        return "/".join([self.uri, *(part.strip("/") for part in parts if part.strip("/"))])

    def local_path(self, name: str = "") -> Path | None:
        return None

    def read_bytes(self, name: str) -> bytes:
        def read(client: Any) -> bytes:
            content: bytes = client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
            return content

        return self._ask(name, read)

    def read_into(self, name: str, target: Sink) -> None:
        """In parts, several at a time, each asked for until it is there; all of one version of the object."""
        found = self._ask(name, lambda client: client.head_object(Bucket=self.bucket, Key=self._key(name)))
        size, version = found["ContentLength"], found["ETag"]

        def part(start: int) -> bytes:
            which = {"Range": f"bytes={start}-{min(start + PIECE, size) - 1}", "IfMatch": version}

            def read(client: Any) -> bytes:
                content: bytes = client.get_object(Bucket=self.bucket, Key=self._key(name), **which)["Body"].read()
                return content

            return self._ask(name, read)

        for content in in_order(part, range(0, size, PIECE), _PARTS_AT_ONCE):
            target.write(content)

    def write_bytes(self, name: str, data: bytes) -> None:
        self._ask(name, lambda client: client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data))

    def exists(self, name: str) -> bool:
        try:
            self._ask(name, lambda client: client.head_object(Bucket=self.bucket, Key=self._key(name)))
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        keys = [key for key in self._keys(prefix) if not key.endswith("/")]  # no folder markers
        return sorted(key.removeprefix(self.root) for key in keys)

    def delete_prefix(self, prefix: str = "") -> int:
        found = [*self._keys(prefix)]
        if prefix and self.exists(prefix):
            found.append(self._key(prefix))
        for start in range(0, len(found), _DELETE_BATCH):
            batch = [{"Key": key} for key in found[start : start + _DELETE_BATCH]]
            self._ask(prefix, functools.partial(self._delete, batch, prefix))
        return sum(not key.endswith("/") for key in found)

    def _delete(self, keys: Sequence[dict[str, str]], prefix: str, client: Any) -> None:
        done = client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})
        if errors := done.get("Errors"):
            code = errors[0].get("Code")
            what = f"cannot delete {len(errors)} of {len(keys)} objects in {self.join(prefix)} ({code})"
            if code in PASSING:
                raise Outage(what)
            raise UserError(f"{what}: the credentials need s3:DeleteObject")

    def upload_dir(self, local: str | Path, prefix: str = "") -> int:
        source = LocalStore(str(Path(local).absolute()))

        def upload(name: str) -> None:
            target = f"{prefix.strip('/')}/{name}".lstrip("/")
            path, key = str(source.local_path(name)), self._key(target)
            self._ask(target, lambda client: client.upload_file(path, self.bucket, key), _TRANSFER_TRIES)

        return len(in_parallel(upload, source.list()))

    def take_dir(self, local: str | Path, prefix: str = "") -> dict[str, Written]:
        source = LocalStore(str(Path(local).absolute()))

        def take(name: str) -> Written:
            target = f"{prefix.strip('/')}/{name}".lstrip("/")
            path = source.local_path(name)

            def send(client: Any) -> Written:
                with path.open("rb") as file:
                    reader = HashedReader(file)
                    client.upload_fileobj(reader, self.bucket, self._key(target), Config=_parts_of(path.stat().st_size))
                return reader.digest.written()

            return self._ask(target, send, _TRANSFER_TRIES)

        names = source.list()
        return dict(zip(names, in_parallel(take, names), strict=True))

    def download_dir(self, prefix: str, local: str | Path) -> int:
        folder = self._folder(prefix).removeprefix(self.root)

        def download(name: str) -> None:
            with replacing(Path(local) / name.removeprefix(folder)) as temporary, temporary.open("wb") as file:
                self.read_into(name, file)

        count = len(in_parallel(download, self.list(prefix)))
        if not count:
            raise FileNotFoundError(f"no files in {self.join(prefix)}")
        return count

    def check_writable(self) -> None:
        """List, then start and abort a multipart upload: that needs the permissions of a put and makes no object."""
        name = ".write-check"

        def check(client: Any) -> None:
            client.list_objects_v2(Bucket=self.bucket, Prefix=self.root, MaxKeys=1)  # an upload may create the bucket
            upload = client.create_multipart_upload(Bucket=self.bucket, Key=self._key(name))
            client.abort_multipart_upload(Bucket=self.bucket, Key=self._key(name), UploadId=upload["UploadId"])

        try:
            self._ask(name, check, _CHECK_TRIES, min(BEFORE_A_RUN_S, patience_s()))
        except Outage as error:
            raise UserError(str(error)) from None

    def _key(self, name: str) -> str:
        return self.root + check_name(name)

    def _folder(self, prefix: str) -> str:
        return f"{self._key(prefix.strip('/'))}/" if prefix.strip("/") else self.root

    def _keys(self, prefix: str) -> Sequence[str]:
        """All keys in folder `prefix`, with markers of folders."""

        def listed(client: Any) -> Sequence[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._folder(prefix))
            return [item["Key"] for page in pages for item in page.get("Contents", [])]

        return self._ask(prefix, listed)

    def _ask(
        self, name: str, request: Callable[[Any], Made], tries: int | None = None, seconds: float | None = None
    ) -> Made:
        """What `request` makes of a client, as `patiently`. tries: of boto3 for each of its requests."""

        def once() -> Made:
            with self._errors(name, tries or _TRIES) as client:
                return request(client)

        return patiently(once, seconds)

    @contextmanager
    def _errors(self, name: str, tries: int = _TRIES) -> Iterator[Any]:
        """Yield the client; boto3's errors become those of `explained`."""
        try:
            yield _client(tries)
        except Exception as error:
            raise explained(error, self.uri, self.join(name)) from None


def part_bytes(size: int) -> int:
    """Bytes per part of an upload of `size` bytes: boto3's own 8 MiB, and more where those were too many parts."""
    return max(_PART, -(-size // _MOST_PARTS))


def _parts_of(size: int) -> Any:
    """boto3 cannot know the size of a reader without `seek`, from which it would choose the parts."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_chunksize=part_bytes(size))


def _client(tries: int = _TRIES) -> Any:
    """The client of the current environment; a changed AWS_* variable makes a new one. tries: per request, with pauses
    of up to 1, 2, 4, ... seconds, 20 at most, in between."""
    return _make_client(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))), tries)


@functools.lru_cache(maxsize=8)
def _make_client(environment: tuple[tuple[str, str], ...], tries: int) -> Any:
    import boto3
    from botocore.config import Config

    logging.getLogger("botocore").setLevel(logging.INFO)  # its debug messages hold session tokens
    region = dict(environment).get("AWS_REGION") or dict(environment).get("AWS_DEFAULT_REGION")
    config = Config(
        connect_timeout=5,
        read_timeout=10 if tries == _CHECK_TRIES else 30,
        retries={"mode": "standard", "total_max_attempts": tries},
        max_pool_connections=4 * PARALLEL_FILES,
        request_checksum_calculation="when_required",  # S3-compatible services often lack the newer checksums
        response_checksum_validation="when_required",
    )
    # A session of its own: boto3's default one caches the credentials it saw first.
    return boto3.session.Session().client("s3", region_name=region, config=config)
