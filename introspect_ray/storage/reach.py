"""Whether a tracking store can be used and answers, within seconds and without importing MLflow. Changes nothing.

MLflow itself would try a server that does not answer for minutes, and name a missing database driver in a traceback.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from introspect_ray.errors import UserError, one_line
from introspect_ray.storage import open_store

ANSWER_S = 5.0  # for a server: to be reached, and to answer
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # MLflow's, each perhaps with +DRIVER
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_OTHER = ("databricks", "databricks-uc", "uc")  # MLflow's own; nothing is asked here
_ASKED = "/api/2.0/mlflow/experiments/search?max_results=1"
_SQLITE = b"SQLite format 3\0"


class Unreachable(UserError):
    """No server answers. It may be back later, so a run that has begun goes on without it."""


def check_tracking(uri: str) -> None:
    """Raises UserError, which begins with tracking.uri=URI, for a URI of no kind that MLflow has, without its driver,
    or whose folder cannot be written to. Reaches no server (`check_answers` does)."""
    kind = uri.partition(":")[0].partition("+")[0] if ":" in uri else ""
    if kind == "sqlite":
        _check_sqlite(uri)
    elif kind in DATABASES:
        _check_driver(uri)
    elif kind in ("", "file"):
        raise UserError(
            f"tracking.uri={uri}: MLflow's folders of files are not supported: give a database (sqlite:///FILE) or a "
            "server (http://HOST:PORT)"
        )
    elif kind not in ("http", "https", *_OTHER):
        known = ", ".join((*DATABASES, "http", "https"))
        raise UserError(f"tracking.uri={uri}: MLflow has no store of the kind {kind!r}: give one of {known}")


def check_answers(uri: str) -> None:
    """Raises UserError if the server of `uri` does not answer within ANSWER_S as MLflow does, or its database's port is
    closed. A file is not looked at."""
    kind = uri.partition(":")[0].partition("+")[0]
    if kind in ("http", "https"):
        _ask_mlflow(uri)
    elif kind in _PORTS:
        _knock(uri, _PORTS[kind])


def _check_sqlite(uri: str) -> None:
    name = uri.partition(":///")[2].partition("?")[0]
    if not name:
        raise UserError(f"tracking.uri={uri}: names no file: give sqlite:///FILE")
    file = Path(name).expanduser().absolute()
    if file.is_dir():
        raise UserError(f"tracking.uri={uri}: {file} is a folder: name a file in it")
    try:
        open_store(file.parent).check_writable()
        with file.open("rb") as opened:
            start = opened.read(len(_SQLITE))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"tracking.uri={uri}: {file} cannot be read ({error.strerror}): choose another file") from None
    except UserError:
        raise UserError(f"tracking.uri={uri}: {file.parent} cannot be written to: choose another folder") from None
    if start not in (b"", _SQLITE):
        raise UserError(f"tracking.uri={uri}: {file} is no SQLite database: choose another file")


def _check_driver(uri: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except SQLAlchemyError as error:
        raise UserError(f"tracking.uri={uri}: {one_line(error):.200}: correct the address") from None
    except ImportError as error:
        raise UserError(
            f"tracking.uri={uri}: the module {error.name} of the database's driver is not installed: install the "
            "driver, or give an MLflow server (http://HOST:PORT)"
        ) from None


def _knock(uri: str, usual: int) -> None:
    try:
        parts = urlsplit(uri)
        if parts.hostname:  # else a socket file, or what the driver's own settings say
            socket.create_connection((parts.hostname, parts.port or usual), timeout=ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"tracking.uri={uri}: no database answers ({error}): start it or correct the address"
        ) from None


def _ask_mlflow(uri: str) -> None:
    """Ask for one experiment, as MLflow's client would."""
    request = urllib.request.Request(uri.rstrip("/") + _ASKED, headers=_credentials())
    unchecked = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS") == "true"  # the user's wish, which MLflow follows too
    context = ssl._create_unverified_context() if unchecked else None  # noqa: S323
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S, context=context) as reply:
            if reply.read(1 << 16).lstrip()[:1] != b"{":
                raise UserError(f"tracking.uri={uri}: what answers there is no MLflow server: correct the address")
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(uri, error.code, error.reason) from None
    except (OSError, ValueError, urllib.error.URLError) as error:
        reason = one_line(getattr(error, "reason", None) or error)
        raise Unreachable(
            f"tracking.uri={uri}: no MLflow server answers ({reason}): start it or correct the address"
        ) from None
    except Exception as error:  # http.client's own errors: what answers does not speak HTTP
        if isinstance(error, UserError):
            raise
        raise Unreachable(
            f"tracking.uri={uri}: no MLflow server answers ({type(error).__name__}): start it or correct the address"
        ) from None


def _refused(uri: str, status: int, reason: str) -> UserError:
    if status in (401, 403):
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return UserError(f"tracking.uri={uri}: the server refuses (HTTP {status} {reason}): {remedy}")
    if status == 404:
        return UserError(f"tracking.uri={uri}: what answers there is no MLflow server (HTTP 404): correct the address")
    return Unreachable(
        f"tracking.uri={uri}: the server answers HTTP {status} {reason}: look at its log, or start it again"
    )


def _credentials() -> dict[str, str]:
    """The header that MLflow's client sends, from the environment."""
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if user or password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
