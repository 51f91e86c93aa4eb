"""SIGINT and SIGTERM in a command.

    when the first one comes         what happens
    ------------------------------------------------------------------------------------------------------------------
    while policies train (`gently`)  whoever trains is asked for a checkpoint, and the body ends by itself; a second
                                     signal, or the end of most of the time, interrupts it
    at any other time                the main thread is interrupted

A watchdog kills this process and its children when the limit (`stop_within_s` of the config) is over. An interruption
is a KeyboardInterrupt, the only exception that `ray.get` lets through from a handler; `asked` says which signal it was.
In Python, not in a command, signals are the caller's.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from introspect_ray.errors import Halted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIMIT_S = 30.0
_RESERVE_S = 10.0  # of the limit, to end what was started: a local Ray needs a few seconds
_KILL = 0.95  # the share of the limit after which what is left is killed
_LOOK_S = 0.1


class _State:
    """What has come while a command runs."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.count = 0
        self.interrupted = False
        self.lost = False  # to be interrupted by `interrupt`
        self.tell: Callable[[], Any] | None = None  # within `gently`
        self.limit_s = LIMIT_S


_now: _State | None = None  # within `handled`
_end = threading.Lock()  # taken once, by whoever ends the process


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals while the body runs, and from the first one on until the process ends."""
    global _now
    if _now is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.getsignal(one) for one in SIGNALS}
    state = _now = _State()
    again()
    try:
        yield
    finally:
        if state.first is None:
            _now = None
            for one, handler in before.items():
                signal.signal(one, handler if handler is not None else signal.SIG_DFL)


def again(limit_s: float | None = None) -> None:
    """Take the signals back from a library that took them. limit_s: see `LIMIT_S`; None: as it was."""
    if _now is None or threading.current_thread() is not threading.main_thread():
        return
    if limit_s is not None:
        _now.limit_s = limit_s
    for one in SIGNALS:
        signal.signal(one, _handle)


def asked() -> str | None:
    """The name of the signal that asked this process to end; None: there was none."""
    return _now.first.name if _now is not None and _now.first is not None else None


def exit_code() -> int:
    """128 and the number of the signal, as shells count."""
    return 128 + (_now.first if _now is not None and _now.first is not None else signal.SIGINT)


@contextmanager
def gently(tell: Callable[[], Any]) -> Iterator[None]:
    """A body that ends by itself, soon, after a signal. tell: asks it to, from a thread.

    Raises Halted if it came to its end after a signal: nothing more shall start.
    """
    if _now is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _now.tell = tell
    try:
        yield
    finally:
        _now.tell = None
    if asked():
        raise Halted("what was under way has come to its end")


def interrupted(signum: signal.Signals, its_way: BaseException) -> BaseException:
    """What to raise for a signal that a library has handled in its own way, by raising `its_way`."""
    if _now is None:
        return its_way
    if _now.first is None:
        _begin(_now, signum)
        _now.interrupted = True
    return KeyboardInterrupt()


def interruptible() -> bool:
    """Whether `interrupt` reaches the caller: it is the main thread."""
    return threading.current_thread() is threading.main_thread()


def interrupt() -> None:
    """Interrupt the main thread from another one, whatever it does."""
    if _now is not None:
        _now.lost = True
    signal.pthread_kill(_main(), signal.SIGINT)


def _handle(signum: int, frame: FrameType | None) -> None:
    state = _now
    if state is None:
        return
    if state.lost:
        state.lost = False
        raise KeyboardInterrupt
    state.count += 1
    if state.first is None:
        _begin(state, signal.Signals(signum))
    if state.tell is not None and state.count == 1:
        _say(
            f"stopping: {asked()}: a checkpoint comes first, for at most {_soft(state):g} s; a second one stops at once"
        )
    elif not state.interrupted:
        state.interrupted = True
        raise KeyboardInterrupt
    elif state.count > 2:
        _end_hard(state)


def _begin(state: _State, signum: signal.Signals) -> None:
    state.first = signum
    threading.Thread(target=_watch, args=(state, time.monotonic()), name="signals", daemon=True).start()


def _watch(state: _State, began: float) -> None:
    """Ask the body of `gently` to end, interrupt it when it takes too long, and end the process when all does."""
    tell = state.tell
    if tell is not None:
        with suppress(Exception):  # who cannot be asked is interrupted
            tell()
    while state.tell is not None and time.monotonic() < began + _soft(state):
        time.sleep(_LOOK_S)
    if state.tell is not None and not state.interrupted and state.first is not None:
        signal.pthread_kill(_main(), state.first)
    while time.monotonic() < began + _KILL * state.limit_s:
        time.sleep(_LOOK_S)
    _end_hard(state)


def _soft(state: _State) -> float:
    """Seconds that the body of `gently` has."""
    return state.limit_s - min(_RESERVE_S, state.limit_s / 3)


def _end_hard(state: _State) -> None:
    _end_now(
        f"{asked()}: what had not ended after {state.limit_s:g} s, or at the third signal, was killed", exit_code()
    )


def give_up(why: str) -> None:
    """End a command in which nothing can go on, from any thread: in one line, with exit code 1. In Python, not in a
    command, this does nothing."""
    if _now is not None:
        _end_now(why, 1)


def _end_now(why: str, code: int) -> None:
    """End this process and its children now: what they hold is lost, what is stored is whole."""
    import psutil

    if not _end.acquire(blocking=False):
        return
    _say(f"stopped: {why}")
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(children, timeout=1)
    os._exit(code)


def _main() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident


def _say(line: str) -> None:
    """In a signal handler: print could be in the middle of another line."""
    with suppress(OSError):
        os.write(2, f"\n{line}\n".encode())  # below a progress bar
