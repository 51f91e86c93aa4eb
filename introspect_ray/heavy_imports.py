"""Importing torch, transformers and vLLM in less time: a quarter of the start of an engine, a third of a trainer's."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# For assisted generation, detection losses and audio: where they are installed (MLflow needs them), transformers and
# vLLM import them; where not, both do without.
_UNUSED = ("sklearn", "scipy")


@contextmanager
def heavy_imports() -> Iterator[None]:
    """In the body nothing is garbage collected, and what only other uses of these libraries need is not found.

    An import leaves its objects alive, hundreds of thousands of them, which the collector would look through again
    and again. A process that has transformers already keeps what it has: transformers looks only once what there is.
    """
    collecting, fresh = gc.isenabled(), "transformers" not in sys.modules
    hidden = [name for name in _UNUSED if fresh and name not in sys.modules]
    gc.disable()
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # how Python says: not to be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if collecting:
            gc.enable()
