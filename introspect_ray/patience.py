"""How long something that does not answer (a store, the hub) is asked again before it counts as gone.

What may pass raises Outage. `patiently` then waits, longer each time and never as long as another process, and asks
again. A process that belongs to a run has the run's `patience_s`; commands and checks before a run have BEFORE_A_RUN_S,
so that a mistyped address is told soon. The environment carries the number into a run's other processes.
"""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from introspect_ray.errors import Outage

PATIENCE = "INTROSPECT_RAY_PATIENCE_S"
BEFORE_A_RUN_S = 15.0
FIRST_S, MOST_S = 0.5, 15.0  # the first pause and the longest one; a pause is between half of it and all of it
TELL_AFTER_S, TELL_EVERY_S = 3.0, 60.0  # of waiting, until a line says so

_most: ContextVar[float] = ContextVar("patience_at_most", default=math.inf)
_log = logging.getLogger(__name__)
_jitter = random.Random()  # its own: the global generator may be seeded by a run
Made = TypeVar("Made")


def patience_s() -> float:
    """The patience here in seconds: of this process, or less within `at_most`."""
    return min(float(os.environ.get(PATIENCE, BEFORE_A_RUN_S)), _most.get())


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Less patience for what the body asks in this thread: for what must not hold a run up."""
    token = _most.set(min(seconds, _most.get()))
    try:
        yield
    finally:
        _most.reset(token)


def use(seconds: float) -> None:
    """Give this process, and those that it starts from now on, the patience of a run."""
    os.environ[PATIENCE] = repr(seconds)


def patiently(
    once: Callable[[], Made],
    seconds: float | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Made:
    """What `once` returns; after an Outage it is called again until `seconds` have passed since the first one.

    seconds: None is the patience of this process; 0 asks once. Other errors are raised at once. Raises the last Outage,
    with how often and how long was asked.
    """
    limit = patience_s() if seconds is None else seconds
    began, told, tries = 0.0, 0.0, 0
    while True:
        try:
            return once()
        except Outage as error:
            began = began if tries else clock()
            tries, waited = tries + 1, clock() - began
            if waited >= limit:
                raise Outage(f"{error} (asked {tries} times in {waited:.0f} s)") from error
            if waited >= TELL_AFTER_S and (not told or waited - told >= TELL_EVERY_S):
                told = waited
                _log.warning("%s; asking again for %.0f s more", error, limit - waited)
        sleep(min(pause(tries), limit - waited))


def pause(tries: int) -> float:
    """Seconds to wait after `tries` failures in a row: between half a bound and all of it, and the bound doubles."""
    return min(FIRST_S * 2.0 ** min(tries - 1, 20), MOST_S) * _jitter.uniform(0.5, 1.0)
