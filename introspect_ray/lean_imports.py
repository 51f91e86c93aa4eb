"""Imports that leave out what a library would take along without need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(package: str) -> Iterator[None]:
    """Let imports in the body find no `package`, unless it is loaded already.

    For what a library imports wherever it is installed: transformers' assisted decoding, which nothing here uses,
    takes scikit-learn, scipy and pandas along, 130 MB and some seconds a process.
    """
    hide = package not in sys.modules
    if hide:
        sys.modules[package] = None  # type: ignore[assignment]  # Python's own mark: importing it fails
    try:
        yield
    finally:
        if hide:
            del sys.modules[package]
