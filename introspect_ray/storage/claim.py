"""One writer: an output folder, with all that is in it, belongs to one live job.

A job puts a claim into its output folder, a file that says whose it is, and gives a sign of life every BEAT_S seconds.
A second job looks for claims in its own folder, in those above it (a trial's is in its sweep's) and in those below:

    the owner ran on this machine    its process is there: the second job is refused; it has gone: taken over at once
    on another one                   it is watched: the next sign of life refuses; none for LEASE_S seconds: taken over

No clocks are compared. A job whose claim was taken over while it was stuck (a suspended machine, say) stops when it
notices, with its next sign of life.
"""

from __future__ import annotations

import getpass
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from introspect_ray import patience, signals
from introspect_ray.errors import AlarmError, Outage, UserError
from introspect_ray.storage import open_store
from introspect_ray.storage.claim_places import NAME, Found, Place, place_of
from introspect_ray.storage.store import Store

BEAT_S = 5.0
LEASE_S = 30.0
_AWAY_S = 300.0  # how long a store may be away while a claim on it is watched
_held: dict[str, str] = {}  # the claims of this process: folder by owner's id
_silent: set[Found] = set()  # claims of other machines that were watched in vain


@dataclass(frozen=True)
class Owner:
    """Who made a claim: a process, and the machine and moment at which it is that process and no other."""

    id: str
    what: str  # the command
    host: str
    machine: str
    pid: int
    started: int  # in clock ticks since the machine's start
    user: str
    since: str

    @classmethod
    def this(cls, what: str) -> Owner:
        """This process, now."""
        pid, since = os.getpid(), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        return cls(uuid.uuid4().hex, what, os.uname().nodename, _machine(), pid, _started(pid) or 0, _user(), since)

    @classmethod
    def read(cls, content: bytes) -> Owner | None:
        """None for something else: a claim that is being written, or a damaged one."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    @property
    def content(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def lives(self) -> bool | None:
        """Whether the owner is at work; None where that cannot be seen from here."""
        if self.machine != _machine():
            return None
        if self.pid == os.getpid():
            return self.id in _held
        started = _started(self.pid)
        return started is not None and started == self.started

    def __str__(self) -> str:
        return f"`{self.what}` on {self.host} (process {self.pid} of {self.user}), since {self.since}"


def check_free(uri: str | Path) -> None:
    """Raise UserError if another live job has the folder, one above it or one below it, with who and since when.

    Changes nothing. Takes up to LEASE_S seconds where the owner of a claim is, or was, on another machine.
    """
    store = open_store(uri)
    for folder in _around(store):
        _refuse_if_live(store, folder)


@contextmanager
def held(uri: str | Path, what: str) -> Iterator[None]:
    """The folder is this job's while the body runs. what: the command, for the message to others.

    Within a body that holds a folder above, this does nothing. Raises UserError as `check_free`, and AlarmError if
    another job has taken the folder over meanwhile: nothing may be written any more.
    """
    store = open_store(uri)
    folder, owner = _folder(store), Owner.this(what)
    if any(one != folder and _is_in(folder, one) for one in _held.values()):
        yield
        return
    check_free(uri)
    _claim(store, folder, owner)
    _held[owner.id] = folder
    heart = _Heart(place_of(store), owner, folder)
    try:
        with heart.beating():
            for other in _around(store):  # one above or below that came at the same moment sees this one, or this it
                if other.uri != store.uri:
                    _refuse_if_live(store, other)
            yield
    except BaseException:
        if heart.lost:
            raise AlarmError(heart.lost) from None
        raise
    finally:
        del _held[owner.id]
        with suppress(UserError, OSError, Outage):  # then it is taken over: its process has gone
            place_of(store).remove(owner.content)
    if heart.lost:
        raise AlarmError(heart.lost)


def _claim(store: Store, folder: str, owner: Owner) -> None:
    """Put the claim into a folder in which no live job is."""
    place = place_of(store)
    for _ in range(3):
        seen = place.read()
        if seen is None and place.create(owner.content):
            return
        if seen is not None and _live(place, seen, folder) is None and place.replace(seen, owner.content):
            print(f"claim    {folder} was that of {_named(seen)}, which has ended: taken over", flush=True)
            return
        _refuse_if_live(store, store)
    raise UserError(f"output folder {folder} is claimed by other jobs at this moment: choose another output_dir")


class _Heart:
    """Gives the signs of life of a claim."""

    def __init__(self, place: Place, owner: Owner, folder: str) -> None:
        self._place, self._owner, self._folder = place, owner, folder
        self._stop = threading.Event()
        self.lost = ""  # why the folder is not this job's any more

    @contextmanager
    def beating(self) -> Iterator[None]:
        thread = threading.Thread(target=self._beat, args=(signals.interruptible(),), name="claim", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(BEAT_S)  # a store that is away must not keep the job from ending

    def _beat(self, interrupt: bool) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                with patience.at_most(0.0):
                    if self._place.beat(self._owner.content) or self._place.create(self._owner.content):
                        continue
                    seen = self._place.read()
            except (UserError, OSError, Outage):
                continue  # the store is away: again at the next beat
            if seen is None or seen.owner == self._owner.content:
                continue
            self.lost = (
                f"output folder {self._folder} was taken over by {_named(seen)}: this job had given no sign of life "
                f"for {LEASE_S:g} s, and ends without writing any more"
            )
            if interrupt and not self._stop.is_set():
                signals.interrupt()
            return


def _refuse_if_live(store: Store, folder: Store) -> None:
    """Raise UserError if the claim in `folder`, which is `store`, above or below it, is that of a live job."""
    place, name = place_of(folder), _folder(folder)
    try:
        seen = place.read()
    except (UserError, OSError, Outage):
        if folder.uri == store.uri:
            raise
        return  # a folder above, which is not ours to read
    above = folder.uri != store.uri and _is_in(_folder(store), name)
    if seen is None or (above and _is_ours(seen)):
        return
    owner = _live(place, seen, name)
    if owner is None:
        return
    inside = "" if folder.uri == store.uri else f" {'is in' if above else 'has in it'} {name}, which"
    raise UserError(
        f"output folder {_folder(store)}{inside} belongs to a job that runs: {owner}; wait until it ends, stop it, or "
        "choose another output_dir"
    )


def _is_ours(seen: Found) -> bool:
    owner = Owner.read(seen.owner)
    return owner is not None and owner.id in _held


def _live(place: Place, seen: Found, folder: str) -> str | None:
    """Who has a claim, if that job lives."""
    owner = Owner.read(seen.owner)
    lives = owner.lives() if owner else None
    if lives is not None:
        return str(owner) if lives else None
    if seen in _silent:
        return None
    print(f"claim    {folder} is that of {_named(seen)}: waiting up to {LEASE_S:g} s for a sign of life", flush=True)
    newer = _watch(place, seen)
    if newer is not None:
        return _named(newer)
    _silent.add(seen)
    return None


def _watch(place: Place, seen: Found) -> Found | None:
    """The claim with a newer mark; None if it got none for LEASE_S seconds in a row in which it could be read, or if it
    was given up."""
    quiet, until = 0.0, time.monotonic() + _AWAY_S
    while quiet < LEASE_S:
        time.sleep(BEAT_S)
        try:
            with patience.at_most(0.0):
                now = place.read()
        except (UserError, OSError, Outage):  # its owner cannot give signs of life either
            if time.monotonic() > until:
                raise
            quiet = 0.0
            continue
        if now != seen:
            return now
        quiet += BEAT_S
    return None


def _named(seen: Found) -> str:
    return str(Owner.read(seen.owner) or "a job that did not say who it is")


def _around(store: Store) -> list[Store]:
    """The folder itself, those above it, and those below it that have a claim."""
    folder = store.local_path()
    above = [str(path) for path in folder.resolve().parents] if folder is not None else _above(store.uri)
    below = [name.removesuffix(f"/{NAME}") for name in store.list() if name.endswith(f"/{NAME}")]
    return [store, *map(open_store, above), *(open_store(store.join(name)) for name in below)]


def _above(uri: str) -> list[str]:
    """The prefixes above one on S3: s3://bucket/a, s3://bucket for s3://bucket/a/b."""
    bucket, *parts = uri.removeprefix("s3://").split("/")
    return ["/".join([f"s3://{bucket}", *parts[:count]]) for count in range(len(parts) - 1, -1, -1)]


def _folder(store: Store) -> str:
    path = store.local_path()
    return store.uri if path is None else str(path.resolve())


def _is_in(inner: str, outer: str) -> bool:
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")


def _machine() -> str:
    """One start of one machine, as seen by processes that see each other: containers have process ids of their own."""
    parts = [os.uname().nodename]
    with suppress(OSError):  # a sandbox may not show them
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> int | None:
    """When a process started; None if there is none, or only its remains."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *fields = stat.rpartition(b")")[2].split()
    return None if state in (b"Z", b"X") else int(fields[18])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
