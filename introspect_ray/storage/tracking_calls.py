"""The calls of a tracker as plain data, and the two files of a run's folder from which a later process goes on.

tracking.json              where the run is tracked: MLflow's address, its experiment and the run there
tracking/waiting.jsonl     the calls that no server has taken yet; there is no such file if there are none
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.storage import Store

RECORD = "tracking.json"
WAITING = "tracking/waiting.jsonl"
_FORMAT = "introspect-ray calls 1"


@dataclass(frozen=True)
class Call:
    """One call of a tracker. kind: what MLflowRun does with it; args: JSON; ms: when it was made, in ms since 1970.

    A call that is sent twice changes nothing, because its time is that of the first.
    """

    kind: str
    args: dict[str, Any]
    ms: int


@dataclass(frozen=True)
class Target:
    """Where a run is tracked. run_id: None until MLflow has made the run. parent: the run id of its sweep.

    tags: who started it, with which code; a child takes those of its parent instead.
    """

    uri: str
    experiment: str
    name: str
    parent: str | None = None
    run_id: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def read_target(store: Store) -> Target | None:
    """What `tracking.json` says; None where there is none, or it is of a run that MLflow does not track. Raises
    UserError if it is damaged."""
    if not store.exists(RECORD):
        return None
    found = store.read_json(RECORD)
    if isinstance(found, dict) and found.get("uri") is None:  # as written by version 0.1 without MLflow
        return None
    try:
        known = {"experiment": "introspect-ray", "name": "run", **found}  # which version 0.1 did not write
        return Target(**known)
    except TypeError as error:
        raise UserError(
            f"{store.join(RECORD)} is damaged ({error}): delete it, and the next call starts another MLflow run"
        ) from None


def write_target(store: Store, target: Target) -> None:
    store.write_json(RECORD, asdict(target))


def read_waiting(store: Store) -> list[Call]:
    """The calls that wait, in order. Raises UserError if their file is not as it was written."""
    if not store.exists(WAITING):
        return []
    head, _, body = store.read_bytes(WAITING).partition(b"\n")
    try:
        about = json.loads(head)
        if about["format"] != _FORMAT:
            raise ValueError(f"its format is {about['format']!r}")
        if about["blake2b"] != _digest(body):
            raise ValueError("it has another checksum than was written")
        return [Call(**json.loads(line)) for line in body.splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{store.join(WAITING)} is damaged ({error}): delete it to give these calls up; metrics.jsonl, "
            "summary.json and evaluation/ beside it have the run's numbers"
        ) from None


def write_waiting(store: Store, calls: Sequence[Call]) -> None:
    """Replace the calls that wait; no calls, no file. Raises OSError or UserError."""
    if not calls:
        if store.exists(WAITING):
            store.delete_prefix(WAITING)
        return
    body = b"".join(_line(asdict(call)) for call in calls)
    head = {"format": _FORMAT, "calls": len(calls), "blake2b": _digest(body)}
    store.write_bytes(WAITING, _line(head) + body)


def described(calls: Iterable[Call]) -> str:
    """Example: "3 calls: 2 metrics, 1 file"."""
    kinds = [call.kind for call in calls]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return f"{len(kinds)} call{'s' * (len(kinds) != 1)}: {counts}" if kinds else "nothing"


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()
