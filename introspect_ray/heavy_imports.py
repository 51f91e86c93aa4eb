"""Import torch, transformers and vLLM in less time and memory.

Start of a process up to a loaded organism, in CPU seconds and MB of resident memory (minimum of five starts on a
two-core machine with torch 2.13, transformers 5.19, vLLM 0.32):

                              trainer         transformers engine   vLLM engine
    plain imports             6.4 s, 408 MB   5.8 s, 461 MB         11.1 s, 807 MB
    no garbage collection     5.3 s, 419 MB   5.0 s, 469 MB         10.4 s, 818 MB
    hidden modules            4.8 s, 336 MB   4.5 s, 321 MB          9.7 s, 663 MB
    both                      4.2 s, 347 MB   3.6 s, 330 MB          8.4 s, 675 MB
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# transformers and vLLM import these for assisted generation, detection losses and audio, if they are installed (MLflow
# installs them). Nothing here uses those features, and both libraries work without these modules.
_HIDDEN = ("sklearn", "scipy")


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Within the body, garbage is not collected, and scikit-learn and SciPy look as if they were not installed.

    Imports create hundreds of thousands of objects that stay alive, which the collector would scan again and again.
    Where transformers is imported already, nothing is hidden: it looks for its optional modules only once.
    """
    collecting, fresh = gc.isenabled(), "transformers" not in sys.modules
    hidden = [name for name in _HIDDEN if fresh and name not in sys.modules]
    gc.disable()
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # makes Python raise ModuleNotFoundError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if collecting:
            gc.enable()
