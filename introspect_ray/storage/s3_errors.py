"""What went wrong at S3, in one line: what the user must mend, what is not there, and what may pass."""

from __future__ import annotations

import os
from typing import Any

from introspect_ray.errors import Outage, UserError

_REFUSED = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
}
_MISSING = {"NoSuchKey", "404", "NotFound"}
PASSING = {  # refusals that may pass, besides those of status 5xx
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "RequestTimeout",
    "IncompleteBody",  # the request was cut short or changed on its way
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "NoSuchUpload",  # the answer to the request that completed an upload was lost, and the request repeated
    "OperationAborted",
    "InternalError",  # as the reason for one object of several
    "ServiceUnavailable",
}


def explained(error: BaseException, uri: str, where: str) -> BaseException:
    """A boto3 error as FileNotFoundError, as UserError with a remedy, as Outage if it may pass, else as OSError; any
    other error as it is. uri: of the store, where: of the object."""
    import botocore.exceptions as boto
    from boto3.exceptions import RetriesExceededError, S3UploadFailedError
    from botocore.parsers import ResponseParserError
    from s3transfer.exceptions import RetriesExceededError as BrokenOff

    if isinstance(error, S3UploadFailedError):  # the code of the refusal is in its context
        error = error.__context__ or error
    elif isinstance(error, RetriesExceededError | BrokenOff):  # a transfer whose connection kept breaking
        error = error.last_exception
    if isinstance(error, ResponseParserError):  # half an answer
        return Outage(f"storage {uri}: {_line(error)[:200]}")
    if isinstance(error, boto.ClientError):
        return _refusal(error, uri, where)
    return _failure(error, uri) if isinstance(error, boto.BotoCoreError | S3UploadFailedError) else error


def _failure(error: BaseException, uri: str) -> Exception:
    """A request to which there was no answer."""
    import botocore.exceptions as boto

    storage = f"storage {uri}"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
        return UserError(f"{storage}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
    if isinstance(error, boto.ParamValidationError):
        return UserError(f"{storage}: not a valid S3 location (s3://bucket/prefix): {_line(error)}")
    if isinstance(error, boto.SSLError):
        return UserError(f"{storage}: {_line(error)}: check AWS_CA_BUNDLE and AWS_ENDPOINT_URL")
    broken = boto.IncompleteReadError | boto.CredentialRetrievalError | boto.MetadataRetrievalError
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError | broken):
        return Outage(f"{storage}: cannot reach {_endpoint()}: check the network and AWS_ENDPOINT_URL")
    return OSError(f"{storage}: {_line(error)}")


def _refusal(error: Any, uri: str, where: str) -> Exception:
    """An answer that says no. error: a ClientError."""
    storage, endpoint, bucket = f"storage {uri}", _endpoint(), uri.removeprefix("s3://").partition("/")[0]
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in PASSING or status >= 500 or status == 429:
        return Outage(f"{storage}: {endpoint} does not serve requests now ({code}, {error.operation_name})")
    if code in _MISSING:
        return FileNotFoundError(f"no object {where}")
    if code in _REFUSED:
        return UserError(
            f"{storage}: {endpoint} refused the credentials ({code}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if code == "NoSuchBucket":
        return UserError(
            f"{storage}: bucket {bucket!r} does not exist at {endpoint}: create it, or check AWS_ENDPOINT_URL"
        )
    if code in ("AccessDenied", "403"):
        return UserError(
            f"{storage}: access denied ({error.operation_name}): the credentials need s3:ListBucket, s3:GetObject, "
            "s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload here"
        )
    return OSError(f"{storage}: {_line(error)}")


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
