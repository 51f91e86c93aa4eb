"""How much is logged: --log-level of all commands, over Python's own logging.

Without it nothing is set up, and Python prints the warnings of our modules as they are. From info on, the terminal also
shows what the processes of the cluster log and what Ray's autoscaler says (runs/cluster.py). In Python:
`logging.getLogger("introspect_ray").setLevel(...)`.
"""

from __future__ import annotations

import logging
import os

LEVELS = ("error", "warning", "info", "debug")
DEFAULT = "warning"
_VARIABLE = "INTROSPECT_RAY_LOG_LEVEL"  # how cluster.connect learns it, also in a job that this process submits
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_level(level: str) -> None:
    """Log the package's messages of `level` (of LEVELS) and above on stderr. The default changes nothing."""
    if level == DEFAULT:
        return
    os.environ[_VARIABLE] = level
    logger = logging.getLogger("introspect_ray")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.handlers = [handler]  # one, however often a command runs in this process
    logger.setLevel(level.upper())
    logger.propagate = False  # Ray gives the root logger a handler of its own


def chosen_level() -> str:
    """The level in force: of this command, or of the environment; DEFAULT where neither says one of LEVELS."""
    level = os.environ.get(_VARIABLE, DEFAULT).lower()
    return level if level in LEVELS else DEFAULT


def shows_workers(level: str) -> bool:
    """Whether what the cluster's processes log belongs on the terminal at `level`."""
    return LEVELS.index(level) >= LEVELS.index("info")
