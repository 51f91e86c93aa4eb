"""A store on S3 or any S3-compatible service, addressed by s3://bucket/prefix.

boto3 rather than Arrow's S3 file system: boto3 names the server's refusal, follows a bucket to its region, and aborts a
failed multipart upload, where closing a half-written Arrow stream would publish the half. Credentials, region and
AWS_ENDPOINT_URL come from the environment or the profile, as usual.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.storage.digests import PARALLEL_FILES, HashedReader, Written, in_parallel
from introspect_ray.storage.local import LocalStore
from introspect_ray.storage.store import Sink, Store, check_name

_DELETE_BATCH = 1000  # S3's limit on one DeleteObjects request
_MOST_PARTS = 10_000  # S3's limit on the parts of one object
_PART = 8 << 20  # bytes per part, as boto3 cuts it
_REFUSED = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
}
_MISSING = {"NoSuchKey", "404", "NotFound"}


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
        with self._errors(name) as client:
            content: bytes = client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
            return content

    def read_into(self, name: str, target: Sink) -> None:
        """boto3 downloads by ranged requests and repeats only those whose connection broke."""
        with self._errors(name) as client:
            client.download_fileobj(self.bucket, self._key(name), target)

    def write_bytes(self, name: str, data: bytes) -> None:
        with self._errors(name) as client:
            client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data)

    def exists(self, name: str) -> bool:
        try:
            with self._errors(name) as client:
                client.head_object(Bucket=self.bucket, Key=self._key(name))
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        with self._errors(prefix):
            keys = [key for key in self._keys(self._folder(prefix)) if not key.endswith("/")]  # no folder markers
        return sorted(key.removeprefix(self.root) for key in keys)

    def delete_prefix(self, prefix: str = "") -> int:
        with self._errors(prefix) as client:
            found = list(self._keys(self._folder(prefix)))
            if prefix and self.exists(prefix):
                found.append(self._key(prefix))
            for start in range(0, len(found), _DELETE_BATCH):
                objects = [{"Key": key} for key in found[start : start + _DELETE_BATCH]]
                done = client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
                if done.get("Errors"):
                    first = done["Errors"][0]
                    raise UserError(
                        f"cannot delete {len(done['Errors'])} of {len(found)} objects in {self.join(prefix)} "
                        f"({first.get('Code')}): the credentials need s3:DeleteObject"
                    )
        return sum(not key.endswith("/") for key in found)

    def upload_dir(self, local: str | Path, prefix: str = "") -> int:
        source = LocalStore(str(Path(local).absolute()))

        def upload(name: str) -> None:
            target = f"{prefix.strip('/')}/{name}".lstrip("/")
            with self._errors(target) as client:
                client.upload_file(str(source.local_path(name)), self.bucket, self._key(target))

        return len(in_parallel(upload, source.list()))

    def take_dir(self, local: str | Path, prefix: str = "") -> dict[str, Written]:
        source = LocalStore(str(Path(local).absolute()))

        def take(name: str) -> Written:
            target = f"{prefix.strip('/')}/{name}".lstrip("/")
            path = source.local_path(name)
            with self._errors(target) as client, path.open("rb") as file:
                reader = HashedReader(file)
                client.upload_fileobj(reader, self.bucket, self._key(target), Config=_parts_of(path.stat().st_size))
            return reader.digest.written()

        names = source.list()
        return dict(zip(names, in_parallel(take, names), strict=True))

    def download_dir(self, prefix: str, local: str | Path) -> int:
        folder = self._folder(prefix).removeprefix(self.root)

        def download(name: str) -> None:
            target = Path(local) / name.removeprefix(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._errors(name) as client:
                client.download_file(self.bucket, self._key(name), str(target))

        count = len(in_parallel(download, self.list(prefix)))
        if not count:
            raise FileNotFoundError(f"no files in {self.join(prefix)}")
        return count

    def check_writable(self) -> None:
        """List, then start and abort a multipart upload: that needs the permissions of a put and makes no object."""
        name = ".write-check"
        with self._errors(name) as client:
            client.list_objects_v2(Bucket=self.bucket, Prefix=self.root, MaxKeys=1)  # an upload may create the bucket
            upload = client.create_multipart_upload(Bucket=self.bucket, Key=self._key(name))
            client.abort_multipart_upload(Bucket=self.bucket, Key=self._key(name), UploadId=upload["UploadId"])

    def _key(self, name: str) -> str:
        return self.root + check_name(name)

    def _folder(self, prefix: str) -> str:
        return f"{self._key(prefix.strip('/'))}/" if prefix.strip("/") else self.root

    def _keys(self, folder: str) -> Iterator[str]:
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder)
        return (item["Key"] for page in pages for item in page.get("Contents", []))

    @contextmanager
    def _errors(self, name: str) -> Iterator[Any]:
        """Yield the client; turn boto3's errors into FileNotFoundError, UserError with a remedy, or OSError."""
        import botocore.exceptions as boto
        from boto3.exceptions import RetriesExceededError, S3UploadFailedError
        from s3transfer.exceptions import RetriesExceededError as BrokenOff

        try:
            yield _client()
        except S3UploadFailedError as error:  # the code of the refusal is in its context
            raise self._explain(error.__context__ or error, name) from None
        except (RetriesExceededError, BrokenOff) as error:  # a download whose connection kept breaking
            raise self._explain(error.last_exception, name) from None
        except (boto.BotoCoreError, boto.ClientError) as error:
            raise self._explain(error, name) from None

    def _explain(self, error: BaseException, name: str) -> Exception:
        import botocore.exceptions as boto

        where = f"storage {self.uri}"
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
            return UserError(
                f"{where}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            )
        if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
            return UserError(f"{where}: cannot reach {endpoint}: check the network and AWS_ENDPOINT_URL")
        if isinstance(error, boto.ParamValidationError):
            return UserError(f"{where}: not a valid S3 location (s3://bucket/prefix): {' '.join(str(error).split())}")
        code = error.response["Error"].get("Code", "") if isinstance(error, boto.ClientError) else ""
        if code in _MISSING:
            return FileNotFoundError(f"no object {self.join(name)}")
        if code in _REFUSED:
            return UserError(
                f"{where}: {endpoint} refused the credentials ({code}): "
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if code == "NoSuchBucket":
            return UserError(
                f"{where}: bucket {self.bucket!r} does not exist at {endpoint}: create it, or check AWS_ENDPOINT_URL"
            )
        if code in ("AccessDenied", "403"):
            return UserError(
                f"{where}: access denied ({_operation(error)}): the credentials need s3:ListBucket, s3:GetObject, "
                "s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload here"
            )
        return OSError(f"{where}: {' '.join(str(error).split())}")


def part_bytes(size: int) -> int:
    """Bytes per part of an upload of `size` bytes: boto3's own 8 MiB, and more where those were too many parts."""
    return max(_PART, -(-size // _MOST_PARTS))


def _parts_of(size: int) -> Any:
    """boto3 cannot know the size of a reader without `seek`, from which it would choose the parts."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_chunksize=part_bytes(size))


def _operation(error: BaseException) -> str:
    return getattr(error, "operation_name", "request")


def _client() -> Any:
    """The client of the current environment; a changed AWS_* variable makes a new one."""
    return _make_client(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@functools.lru_cache(maxsize=4)
def _make_client(environment: tuple[tuple[str, str], ...]) -> Any:
    import boto3
    from botocore.config import Config

    logging.getLogger("botocore").setLevel(logging.INFO)  # its debug messages hold session tokens
    region = dict(environment).get("AWS_REGION") or dict(environment).get("AWS_DEFAULT_REGION")
    config = Config(
        connect_timeout=5,
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=4 * PARALLEL_FILES,
        request_checksum_calculation="when_required",  # S3-compatible services often lack the newer checksums
        response_checksum_validation="when_required",
    )
    # A session of its own: boto3's default one caches the credentials it saw first.
    return boto3.session.Session().client("s3", region_name=region, config=config)
